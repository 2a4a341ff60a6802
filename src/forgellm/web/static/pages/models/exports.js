/** Files for other programs, in models/exported/. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { gigabytes, time } from '../../core/format.js';
import { useResource } from '../../core/resource.js';
import { CopyButton } from '../../components/controls.js';
import { confirmed } from '../../components/dialog.js';
import { Badge, Empty, Shown, toast, toastError } from '../../components/feedback.js';
import { Icon } from '../../components/icon.js';
import { Table } from '../../components/table.js';
import { Make } from './make.js';

const KINDS = { gguf: 'GGUF', peft: 'PEFT adapter', mlx: 'mlx-lm adapter', 'gguf-lora': 'GGUF adapter' };

export function Exports({ numMade }) {
    const found = useResource(read, [numMade]);
    const [pushed, setPushed] = useState(/** @type {string | null} */ (null));
    return html`<${Shown} resource=${found} what="Looking for exports">${(rows) => rows.length === 0
        ? html`<${Empty} title="Nothing exported yet"><p>Export a model as GGUF from the list of models, or a checkpoint's adapter from its run.</p><//>`
        : html`<div class="card flush"><${Table} caption="Exports" rows=${rows} rowKey=${(row) => row.name} columns=${columns(found.reload, setPushed)} /></div>`}<//>
        ${pushed && html`<${Make} name=${`exported/${pushed}`} ways=${['push']} onClose=${() => setPushed(null)} />`}`;
}

/** The tree knows runs by the names they have now. */
async function read() {
    const [{ exports }, { members }] = await Promise.all([api.listExports(), api.modelsTree()]);
    const sources = new Map(members.map((member) => [member.name, member.made_from]));
    return exports.map((item) => ({ ...item, made_from: sources.get(`exported/${item.name}`) ?? item.made_from }));
}

function columns(reload, push) {
    return [
        { id: 'name', label: 'Name', value: (row) => row.name, show: (row) => html`<span class="name-cell">${row.name}</span><span class="name-cell quiet small-text">from ${row.made_from.join(', ')}</span>` },
        { id: 'kind', label: 'Kind', value: (row) => row.kind, show: (row) => html`<${Badge}>${KINDS[row.kind] ?? row.kind}<//>` },
        { id: 'size', label: 'Size', align: /** @type {const} */ ('end'), value: (row) => row.size_gb, show: (row) => gigabytes(row.size_gb) },
        { id: 'files', label: 'Files', value: (row) => row.files.length, show: (row) => html`<span class="name-cell small-text">${row.files.join(', ')}</span>` },
        { id: 'created', label: 'Since', value: (row) => row.created_at, show: (row) => html`<span class="nowrap">${time(row.created_at)}</span>` },
        { id: 'actions', label: '', value: () => null, show: (row) => html`<div class="row end nowrap">
            <${CopyButton} label="Copy path" text=${row.path} />
            <button class="small" onClick=${() => push(row.name)}>Push</button>
            <button class="bare" aria-label=${`Delete ${row.name}`} onClick=${() => remove(row, reload)}><${Icon} name="trash" size=${16} /></button></div>` },
    ];
}

async function remove(row, reload) {
    const text = `${row.name}, ${gigabytes(row.size_gb)}. It can be exported again while what it was made from is here.`;
    if (!(await confirmed({ title: 'Delete this export?', text, action: 'Delete for good', danger: true }))) return;
    await api.deleteExport(row.name).then(() => { toast('Export deleted'); reload(); }, toastError);
}
