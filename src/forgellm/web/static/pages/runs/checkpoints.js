/** A run's checkpoints, ranked: talk to one, compare it, publish it, delete it. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { figure, megabytes, percent, time } from '../../core/format.js';
import { confirmed } from '../../components/dialog.js';
import { Badge, Empty, Notice, toast, toastError } from '../../components/feedback.js';
import { Icon } from '../../components/icon.js';
import { JobProgress, useJob } from '../../components/job.js';
import { Made } from '../../components/made.js';
import { Table } from '../../components/table.js';
import { ExportAdapter } from './export_adapter.js';
import { PublishCheckpoint } from './publish_checkpoint.js';

export function Checkpoints({ run, checkpoints, evaluations, reload, isActive }) {
    if (!checkpoints.length) {
        return html`<${Empty} title="No checkpoint yet"><p>${isActive ? 'The first one comes with the first validation.' : 'This run ended before its first checkpoint.'}</p><//>`;
    }
    const measured = new Map(evaluations.map((line) => [line.iteration, line]));
    return html`<div class="stack">
        <div class="card flush"><${Table} caption="Checkpoints, best first" rows=${checkpoints} rowKey=${(item) => item.iteration}
            rowClass=${(item) => (item.is_best ? 'best' : '')} columns=${columns(run, measured, reload, isActive)} /></div>
        <p class="quiet small-text">Ranked by the validation loss measured at that iteration. The files are in <code>${run.output_dir}</code>.</p>
    </div>`;
}

function columns(run, measured, reload, isActive) {
    const first = measured.values().next().value;
    return [
        { id: 'rank', label: 'Rank', value: (item) => item.rank, show: (item) => (item.is_best ? html`<${Badge} tone="good">best<//>` : item.rank) },
        { id: 'iteration', label: 'Iteration', align: 'end', value: (item) => item.iteration },
        { id: 'loss', label: 'Validation loss', align: 'end', value: (item) => item.validation_loss, show: (item) => figure(item.validation_loss, 4) },
        ...(first?.probes.length ? [{ id: 'probes', label: 'Probes right', align: 'end', value: (item) => measured.get(item.iteration)?.probes[0]?.accuracy, show: (item) => probesShown(measured.get(item.iteration)) }] : []),
        ...(first?.general.length ? [{ id: 'general', label: 'General loss', align: 'end', value: (item) => measured.get(item.iteration)?.general[0]?.loss, show: (item) => figure(measured.get(item.iteration)?.general[0]?.loss) }] : []),
        { id: 'size', label: 'Size', align: 'end', value: (item) => item.size_mb, show: (item) => megabytes(item.size_mb) },
        { id: 'created', label: 'Written', value: (item) => item.created_at, show: (item) => html`<span class="nowrap">${time(item.created_at)}</span>` },
        { id: 'actions', label: '', value: () => null, show: (item) => html`<${Actions} run=${run} item=${item} reload=${reload} isActive=${isActive} />` },
    ];
}

function probesShown(line) {
    const found = line?.probes[0];
    return found ? html`${percent(found.accuracy, 1)} <span class="quiet small-text">± ${percent(1.96 * found.standard_error, 1)}</span>` : '–';
}

function Actions({ run, item, reload, isActive }) {
    const { job, follow, clear } = useJob();
    const [asked, setAsked] = useState('');
    const close = () => setAsked('');
    const at = `${encodeURIComponent(run.name)}@${item.iteration}`;
    const remove = async () => {
        const text = `Checkpoint ${item.iteration} and what a resume from it needs. This cannot be taken back.`;
        if (!(await confirmed({ title: 'Delete this checkpoint?', text, action: 'Delete for good', danger: true }))) return;
        await api.deleteCheckpoint(run.name, item.iteration).then(() => { toast('Checkpoint deleted'); reload(); }, toastError);
    };
    if (job?.status === 'completed') return html`<${Notice} tone="good"><${Made} job=${job} /><//>`;
    if (job && job.status !== 'cancelled') return html`<${JobProgress} job=${job} onClear=${clear} />`;
    return html`<div class="row end nowrap">
        <a class="button small" href=${`/chat?run=${at}`}>Chat</a>
        <a class="button small" title="Side by side with the base model" href=${`/chat?run=${at}&beside=base`}>Compare</a>
        <button class="small" onClick=${() => setAsked('publish')}>Publish</button>
        <button class="small" title="The adapter alone, for other programs" onClick=${() => setAsked('export')}>Export</button>
        <button class="bare" aria-label=${`Delete checkpoint ${item.iteration}`} disabled=${isActive} title=${isActive ? 'Not while the run trains' : ''} onClick=${remove}><${Icon} name="trash" size=${16} /></button>
        ${asked === 'publish' && html`<${PublishCheckpoint} run=${run} item=${item} onBegun=${follow} onClose=${close} />`}
        ${asked === 'export' && html`<${ExportAdapter} checkpoint=${`${run.name}@${item.iteration}`} onBegun=${follow} onClose=${close} />`}
    </div>`;
}
