/** Everything that can be loaded: what it is, where it came from, what it can be made into. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { baseName, gigabytes, time } from '../../core/format.js';
import { model, runsChanged } from '../../core/live.js';
import { useResource } from '../../core/resource.js';
import { address } from '../../core/router.js';
import { WorkButton } from '../../components/controls.js';
import { Badge, Empty, Notice, Problem, Shown, toast, toastError } from '../../components/feedback.js';
import { confirmed } from '../../components/dialog.js';
import { Icon } from '../../components/icon.js';
import { Table } from '../../components/table.js';
import { keyOf, labelOf } from '../chat/choices.js';
import { HubDownload } from './hub_download.js';

export const title = 'Models';
const LOSS = {
    cached: 'It can be downloaded again, as long as the hub has it.',
    base: 'It cannot be taken back. Runs made from it need it to be talked to or published.',
    published: 'It cannot be taken back, only published again while its run is here.',
};
const KINDS = { base: 'to start from', cached: 'from the hub', published: 'published here', cpt: 'run (CPT)', ift: 'run (IFT)', dpo: 'run (DPO)', orpo: 'run (ORPO)' };

export function View({ query }) {
    const found = useResource(read, [runsChanged.value]);
    const [isHubOpen, setHubOpen] = useState(query.hub !== undefined);
    return html`<div class="page">
        <div class="page-head"><h1>Models</h1><button onClick=${() => setHubOpen(true)}><${Icon} name="download" /> From the hub</button></div>
        <${Loaded} />
        <${Shown} resource=${found} what="Looking for models">${(rows) => rows.length === 0
            ? html`<${Empty} title="No models here yet"><p>Bring one from the hub, import a GGUF with <code>forgellm models import</code>, or put a folder into <code>models/base/</code>.</p><//>`
            : html`<div class="card flush"><${Table} caption="Models and runs" rows=${rows} rowKey=${(row) => row.kind + row.name} columns=${columns(found.reload)} /></div>`}<//>
        ${isHubOpen && html`<${HubDownload} onClose=${() => { setHubOpen(false); found.reload(); }} />`}
    </div>`;
}

/** Models and runs as rows, each with what it was made of. */
async function read() {
    const [{ models }, { runs }] = await Promise.all([api.searchModels(''), api.listRuns({ limit: 500 })]);
    const byName = new Map(runs.map((run) => [run.name, run]));
    return models.map((item) => {
        const run = byName.get(item.name);
        const pane = run ? { model_name: run.model_name, adapter_path: run.output_dir } : { model_name: item.path ?? item.name, adapter_path: null };
        return { ...item, run, pane };
    });
}

function columns(reload) {
    return [
        { id: 'name', label: 'Name', value: (row) => row.name, show: (row) => html`${row.run ? html`<a href=${address('runs', row.name)}>${row.name}</a>` : row.name}<br /><span class="quiet small-text">${madeFrom(row)}</span>` },
        { id: 'kind', label: 'Kind', value: (row) => row.kind, show: (row) => html`<${Badge} tone=${row.kind === 'published' ? 'good' : row.run ? 'info' : 'quiet'}>${KINDS[row.kind] ?? row.kind}<//>` },
        { id: 'size', label: 'Size', align: 'end', value: (row) => row.size_gb, show: (row) => gigabytes(row.size_gb) },
        { id: 'created', label: 'Since', value: (row) => row.created_at, show: (row) => html`<span class="nowrap">${time(row.created_at)}</span>` },
        { id: 'actions', label: '', value: () => null, show: (row) => html`<${Actions} row=${row} reload=${reload} />` },
    ];
}

function madeFrom(row) {
    if (row.run) return `from ${baseName(row.run.model_name)}, on ${row.run.dataset}`;
    return row.type === 'instruct' ? 'answers chat turns' : 'continues text';
}

function Actions({ row, reload }) {
    const chat = row.run ? `/chat?run=${encodeURIComponent(row.name)}` : `/chat?model=${encodeURIComponent(row.pane.model_name)}`;
    const train = row.run ? `/train?base_run=${encodeURIComponent(row.name)}` : `/train?model=${encodeURIComponent(row.pane.model_name)}`;
    return html`<div class="row end nowrap">
        <a class="button small" href=${chat}>Chat</a>
        <a class="button small" href=${train}>Train on it</a>
        ${row.run && html`<a class="button small" href=${`${address('runs', row.name)}?tab=checkpoints`}>Publish</a>`}
        <${LoadButton} pane=${row.pane} />
        ${!row.run && html`<button class="bare" aria-label=${`Delete ${row.name}`} onClick=${() => remove(row, reload)}><${Icon} name="trash" size=${16} /></button>`}
    </div>`;
}

async function remove(row, reload) {
    const text = `${row.name}, ${gigabytes(row.size_gb)}. ${LOSS[row.kind]}`;
    if (!(await confirmed({ title: 'Delete this model?', text, action: 'Delete for good', danger: true }))) return;
    await api.deleteModel(row.pane.model_name).then(() => { toast('Model deleted'); reload(); }, toastError);
}

const heldOf = (pane) => model.value?.models?.find((item) => keyOf(item) === keyOf(pane));

function LoadButton({ pane }) {
    const held = heldOf(pane);
    if (held?.is_loading) return html`<button class="small" disabled><span class="spinner" aria-hidden="true"></span> Loading</button>`;
    if (held?.loaded) return html`<${WorkButton} class="small" onPress=${() => unload(pane)}>Unload<//>`;
    return html`<${WorkButton} class="small" onPress=${() => api.loadModel(pane.model_name, pane.adapter_path ?? undefined, { beside: true }).catch(toastError)}>Load<//>`;
}

const unload = (pane) => api.unloadModel(pane.model_name, pane.adapter_path ?? undefined).catch(toastError);

/** What the model server holds now. */
function Loaded() {
    const status = model.value;
    if (status && !status.running) {
        return html`<${Notice} tone="warn"><strong>The model server does not run.</strong><span>Training goes on without it; to chat, start everything with <code>forgellm start</code>.</span><//>`;
    }
    if (!status?.models?.length) return null;
    return html`<section class="card"><h2>In memory</h2><ul class="plain-list">${status.models.map((item) => html`<li key=${keyOf(item)}>
        <span class="grow"><span class="block cut">${labelOf(item)}</span>
            ${item.error ? html`<${Problem} error=${item.error} />` : html`<span class="quiet small-text">${[item.adapter_path && baseName(item.model_name), item.iteration && `iteration ${item.iteration}`, item.context_length && `${item.context_length} tokens of context`].filter(Boolean).join(', ')}</span>`}</span>
        ${item.is_loading ? html`<${Badge} tone="busy">loading<//>` : item.loaded && html`<span class="quiet">${gigabytes(item.memory_usage_gb)}</span>`}
        <${WorkButton} class="small" onPress=${() => unload(item)}>Unload<//>
    </li>`)}</ul></section>`;
}
