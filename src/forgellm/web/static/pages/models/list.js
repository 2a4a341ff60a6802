/** Everything that can be loaded: what it is, where it came from, what can be done with it. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { baseName, gigabytes, time } from '../../core/format.js';
import { address } from '../../core/router.js';
import { Badge, Empty, Shown, toast, toastError } from '../../components/feedback.js';
import { confirmed } from '../../components/dialog.js';
import { Icon } from '../../components/icon.js';
import { Table } from '../../components/table.js';
import { LoadButton } from './in_memory.js';
import { Make } from './make.js';

const LOSS = {
    cached: 'It can be downloaded again, as long as the hub has it.',
    base: 'It cannot be taken back. Runs made from it need it to be talked to or published.',
    published: 'It cannot be taken back, only published again while its run is here.',
};
const KINDS = { base: 'to start from', cached: 'from the hub', published: 'published here', cpt: 'run (CPT)', ift: 'run (IFT)', dpo: 'run (DPO)', orpo: 'run (ORPO)' };

/** @param {{found: ReturnType<typeof import('../../core/resource.js').useResource>}} props what `readModels` gave */
export function List({ found }) {
    const [made, setMade] = useState(/** @type {any} */ (null));
    return html`<${Shown} resource=${found} what="Looking for models">${(rows) => rows.length === 0
        ? html`<${Empty} title="No models here yet"><p>Bring one from the hub, import a GGUF with <code>forgellm models import</code>, or put a folder into <code>models/base/</code>.</p><//>`
        : html`<div class="card flush"><${Table} caption="Models and runs" rows=${rows} rowKey=${(row) => row.kind + row.name} columns=${columns(found.reload, setMade)} /></div>`}<//>
        ${made && html`<${Make} name=${made.pane.model_name} ways=${made.kind === 'published' ? ['quantise', 'gguf', 'push'] : ['quantise', 'gguf']} onClose=${() => setMade(null)} />`}`;
}

/** Models and runs as rows, each with what it was made of. */
export async function readModels() {
    const [{ models }, { runs }] = await Promise.all([api.searchModels(''), api.listRuns({ limit: 500 })]);
    const byName = new Map(runs.map((run) => [run.name, run]));
    return models.map((item) => {
        const run = byName.get(item.name);
        const pane = run ? { model_name: run.model_name, adapter_path: run.output_dir } : { model_name: item.path ?? item.name, adapter_path: null };
        return { ...item, run, pane };
    });
}

function columns(reload, make) {
    return [
        { id: 'name', label: 'Name', value: (row) => row.name, show: (row) => html`<span class="name-cell">${row.run ? html`<a href=${address('runs', row.name)}>${row.name}</a>` : row.name}</span><span class="quiet small-text">${madeFrom(row)}</span>` },
        { id: 'kind', label: 'Kind', value: (row) => row.kind, show: (row) => html`<${Badge} tone=${row.kind === 'published' ? 'good' : row.run ? 'info' : 'quiet'}>${KINDS[row.kind] ?? row.kind}<//>` },
        { id: 'size', label: 'Size', align: 'end', value: (row) => row.size_gb, show: (row) => gigabytes(row.size_gb) },
        { id: 'created', label: 'Since', value: (row) => row.created_at, show: (row) => html`<span class="nowrap">${time(row.created_at)}</span>` },
        { id: 'actions', label: '', value: () => null, show: (row) => html`<${Actions} row=${row} reload=${reload} make=${make} />` },
    ];
}

function madeFrom(row) {
    if (row.run) return `from ${baseName(row.run.model_name)}, on ${row.run.dataset}`;
    return row.type === 'instruct' ? 'answers chat turns' : 'continues text';
}

function Actions({ row, reload, make }) {
    const chat = row.run ? `/chat?run=${encodeURIComponent(row.name)}` : `/chat?model=${encodeURIComponent(row.pane.model_name)}`;
    const train = row.run ? `/train?base_run=${encodeURIComponent(row.name)}` : `/train?model=${encodeURIComponent(row.pane.model_name)}`;
    return html`<div class="row end nowrap">
        <a class="button small" href=${chat}>Chat</a>
        <a class="button small" href=${train} title="Train on it">Train</a>
        ${row.run ? html`<a class="button small" href=${`${address('runs', row.name)}?tab=checkpoints`}>Publish</a>`
            : html`<button class="small" title="Quantise, export as GGUF, push to the hub" onClick=${() => make(row)}>Export</button>`}
        <${LoadButton} pane=${row.pane} />
        ${!row.run && html`<button class="bare" aria-label=${`Delete ${row.name}`} onClick=${() => remove(row, reload)}><${Icon} name="trash" size=${16} /></button>`}
    </div>`;
}

async function remove(row, reload) {
    const text = `${row.name}, ${gigabytes(row.size_gb)}. ${LOSS[row.kind]}`;
    if (!(await confirmed({ title: 'Delete this model?', text, action: 'Delete for good', danger: true }))) return;
    await api.deleteModel(row.pane.model_name).then(() => { toast('Model deleted'); reload(); }, toastError);
}
