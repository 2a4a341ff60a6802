/** All runs, newest first: filter, compare, clone, rename, delete, bring back. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { baseName, count, figure, megabytes, PHASES, plural, time } from '../../core/format.js';
import { runsChanged } from '../../core/live.js';
import { useResource } from '../../core/resource.js';
import { address, navigate, setQuery } from '../../core/router.js';
import { WorkButton } from '../../components/controls.js';
import { confirmed, Dialog } from '../../components/dialog.js';
import { Badge, Empty, Loading, Shown, toast, toastError } from '../../components/feedback.js';
import { Icon } from '../../components/icon.js';
import { Table } from '../../components/table.js';

const MOST = 500;

export function List({ query }) {
    const runs = useResource(() => api.listRuns({ limit: MOST }), [runsChanged.value]);
    const [chosen, setChosen] = useState(/** @type {string[]} */ ([]));
    const [isTrashOpen, setTrashOpen] = useState(false);
    const wanted = (query.q ?? '').toLowerCase();
    const shown = (runs.data?.runs ?? []).filter((run) => matches(run, wanted) && (!query.phase || run.phase === query.phase));
    return html`<div class="page">
        <div class="page-head"><h1>Runs</h1>
            <button onClick=${() => setTrashOpen(true)}><${Icon} name="trash" /> Trash</button>
            <button disabled=${chosen.length < 2} onClick=${() => navigate(`/compare?runs=${chosen.join(',')}`)}>Compare ${chosen.length > 1 ? chosen.length : ''}</button>
            <a class="button primary" href="/train">Train</a>
        </div>
        <${Shown} resource=${runs} what="Reading the runs">${(reply) => reply.total === 0
            ? html`<${Empty} title="No runs yet"><p>Choose a model and documents, and watch it learn.</p><a class="button primary" href="/train">Train</a><//>`
            : html`<${Filters} query=${query} runs=${reply.runs} />
                <div class="card flush"><${Table} caption="Runs" rowKey=${(run) => run.training_id} rows=${shown}
                    columns=${columns(chosen, setChosen, runs.reload)} /></div>
                ${reply.total > MOST && html`<p class="quiet">The newest ${MOST} of ${count(reply.total)} runs are shown.</p>`}`}
        <//>
        ${isTrashOpen && html`<${Trash} onClose=${() => setTrashOpen(false)} onChange=${runs.reload} />`}
    </div>`;
}

function Filters({ query, runs }) {
    const phases = [...new Set(runs.map((run) => run.phase))];
    return html`<div class="row">
        <label class="grow"><span class="hidden">Search runs</span>
            <input type="search" placeholder="Search by name, model or dataset" value=${query.q ?? ''} onInput=${(event) => setQuery({ q: event.target.value })} /></label>
        <label><span class="hidden">Phase</span><select onChange=${(event) => setQuery({ phase: event.target.value })}>
            <option value="">Any state</option>
            ${phases.map((phase) => html`<option key=${phase} value=${phase} selected=${query.phase === phase}>${PHASES[phase]?.[0] ?? phase}</option>`)}
        </select></label>
    </div>`;
}

function columns(chosen, setChosen, reload) {
    const turn = (name) => setChosen(chosen.includes(name) ? chosen.filter((item) => item !== name) : [...chosen, name].slice(-8));
    return [
        { id: 'chosen', label: '', value: () => null, show: (run) => html`<input type="checkbox" aria-label=${`Compare ${run.name}`} checked=${chosen.includes(run.name)} onChange=${() => turn(run.name)} />` },
        { id: 'name', label: 'Run', value: (run) => run.name, show: (run) => html`<span class="name-cell"><a href=${address('runs', run.name)}>${run.name}</a></span><span class="quiet small-text">${baseName(run.model_name)} on ${run.dataset}</span>` },
        { id: 'type', label: 'Kind', value: (run) => run.training_type, show: (run) => run.training_type.toUpperCase() },
        { id: 'phase', label: 'State', value: (run) => run.phase, show: (run) => html`<${State} run=${run} />` },
        { id: 'loss', label: 'Best loss', align: 'end', value: (run) => run.best_validation_loss, show: (run) => figure(run.best_validation_loss) },
        { id: 'created', label: 'Started', value: (run) => run.created_at, show: (run) => html`<span class="nowrap">${time(run.created_at)}</span>` },
        { id: 'more', label: '', value: () => null, show: (run) => html`<${RowActions} run=${run} onChange=${reload} />` },
    ];
}

export function State({ run }) {
    const [word, tone] = PHASES[run.phase] ?? [run.phase, 'quiet'];
    const progress = run.is_training ? ` ${Math.floor(run.progress_percentage)} %` : '';
    return html`<${Badge} tone=${tone}>${word}${progress}<//>${run.overfitting && html` <${Badge} tone="warn">overfits<//>`}`;
}

function RowActions({ run, onChange }) {
    const remove = async () => {
        if (!(await confirmed({ title: 'Move this run to the trash?', text: `${run.name} and its ${plural(run.num_checkpoints, 'checkpoint')}. It can be brought back until the trash is emptied.`, action: 'Move to trash', danger: true }))) return;
        await api.deleteRun(run.name).then(() => { toast('Moved to the trash'); onChange(); }, toastError);
    };
    return html`<div class="row end nowrap">
        <a class="button small" href=${`/train?clone=${encodeURIComponent(run.name)}`}>Clone</a>
        <button class="bare" aria-label=${`Delete ${run.name}`} disabled=${run.is_training || run.phase === 'queued'} onClick=${remove}><${Icon} name="trash" size=${16} /></button>
    </div>`;
}

const matches = (run, wanted) => `${run.name} ${run.model_name} ${run.dataset}`.toLowerCase().includes(wanted);

function Trash({ onClose, onChange }) {
    const trash = useResource(() => api.listTrash());
    const changed = () => { trash.reload(); onChange(); };
    const restore = (item) => api.restoreRun(item.name).then(() => { toast('The run is back'); changed(); }, toastError);
    const empty = async () => {
        const text = `${plural(trash.data.trash.length, 'run')}, ${megabytes(trash.data.total_size_mb)}. This cannot be taken back.`;
        if (!(await confirmed({ title: 'Empty the trash?', text, action: 'Delete for good', danger: true }))) return;
        await api.emptyTrash().then(changed, toastError);
    };
    const isEmpty = trash.data?.trash.length === 0;
    return html`<${Dialog} title="Trash" wide onClose=${onClose}
        footer=${trash.data && !isEmpty && html`<div class="row"><span class="grow quiet">${megabytes(trash.data.total_size_mb)}</span><button class="danger" onClick=${empty}>Empty the trash</button></div>`}>
        ${!trash.data ? html`<${Loading} />` : isEmpty ? html`<p class="quiet">The trash is empty.</p>` : html`<ul class="plain-list">
            ${trash.data.trash.map((item) => html`<li key=${item.name}><span class="grow">${item.original_name}<br /><span class="quiet small-text">${baseName(item.model_name)}, ${megabytes(item.size_mb)}, deleted ${time(item.deleted_at)}</span></span>
                <${WorkButton} class="small" onPress=${() => restore(item)}>Bring back<//></li>`)}
        </ul>`}
    <//>`;
}
