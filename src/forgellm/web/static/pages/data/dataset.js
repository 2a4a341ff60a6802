/** One dataset. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { megabytes } from '../../core/format.js';
import { useResource } from '../../core/resource.js';
import { setQuery } from '../../core/router.js';
import { Tabs } from '../../components/controls.js';
import { confirmed } from '../../components/dialog.js';
import { Shown, toast, toastError } from '../../components/feedback.js';
import { Choice } from '../../components/field.js';
import { Icon } from '../../components/icon.js';
import { Table } from '../../components/table.js';
import { Inspection } from './inspection.js';
import { Preparation } from './preparation.js';
import { Preview } from './preview.js';
import { Upload } from './upload.js';

const TABS = [
    { id: 'files', label: 'Files' },
    { id: 'inside', label: 'What is in it' },
    { id: 'preview', label: 'As the model sees it' },
    { id: 'prepare', label: 'Clean it' },
];

export function Dataset({ name, query }) {
    const files = useResource(() => api.browse(`dataset/${name}`), [name]);
    const [isUploading, setUploading] = useState(false);
    const tab = query.tab ?? 'files';
    return html`<div class="page">
        <div class="page-head"><h1>${name}</h1>
            <button onClick=${() => setUploading(true)}><${Icon} name="upload" /> Add files</button>
            <a class="button primary" href=${`/train?dataset=${encodeURIComponent(name)}`}>Train on it</a></div>
        <${Tabs} label="Parts of the dataset" tabs=${TABS} chosen=${tab} onChange=${(id) => setQuery({ tab: id === 'files' ? null : id })} />
        <div role="tabpanel" aria-labelledby=${`tab-${tab}`}>
            ${tab === 'files' && html`<${Shown} resource=${files} what="Reading the folder">${(found) => html`<${Files} name=${name} found=${found} reload=${files.reload} />`}<//>`}
            ${tab === 'inside' && html`<${Inspection} name=${name} />`}
            ${tab === 'preview' && html`<${AsSeen} name=${name} />`}
            ${tab === 'prepare' && html`<${Preparation} name=${name} />`}
        </div>
        ${isUploading && html`<${Upload} into=${name} onClose=${() => setUploading(false)} onDone=${() => { setUploading(false); files.reload(); }} />`}
    </div>`;
}

function Files({ name, found, reload }) {
    const rows = [...found.directories, ...found.files];
    const remove = async (file) => {
        if (!(await confirmed({ title: 'Delete this file?', text: `${file} in dataset/${name}. This cannot be taken back.`, action: 'Delete for good', danger: true }))) return;
        await api.deleteFile(name, file).then(() => { toast('File deleted'); reload(); }, toastError);
    };
    return html`<div class="card flush"><${Table} caption="Files" rows=${rows} rowKey=${(item) => item.type + item.name} columns=${[
        { id: 'name', label: 'Name', value: (item) => item.name, show: (item) => html`<span class="row nowrap-start"><${Icon} name=${item.type === 'directory' ? 'folder' : 'file'} size=${16} /> ${item.name}</span>` },
        { id: 'size', label: 'Size', align: 'end', value: (item) => item.size_mb, show: (item) => megabytes(item.size_mb) },
        { id: 'delete', label: '', align: 'end', value: () => null, show: (item) => item.type === 'file' && html`<button class="bare" aria-label=${`Delete ${item.name}`} onClick=${() => remove(item.name)}><${Icon} name="trash" size=${16} /></button>` },
    ]} /></div>${found.truncated && html`<p class="quiet">The folder has more files than are shown.</p>`}`;
}

/** What a dataset holds is found out by reading its beginning; another reading can be chosen. */
async function kindOf(name) {
    for (const training_type of ['dpo', 'ift']) {
        const found = await api.previewDataset(name, { blocks: 0, training_type });
        if (found.document_count > 0) return training_type;
    }
    return 'cpt';
}

function AsSeen({ name }) {
    const found = useResource(() => kindOf(name), [name]);
    return html`<${Shown} resource=${found} what="Finding out what it holds">${(kind) => html`<${ReadAs} name=${name} first=${kind} />`}<//>`;
}

function ReadAs({ name, first }) {
    const [kind, setKind] = useState(first);
    return html`<div class="stack"><${Choice} label="Read it as" value=${kind} options=${[{ value: 'cpt', label: 'Documents' }, { value: 'ift', label: 'Conversations' }, { value: 'dpo', label: 'Preferences' }]} onChange=${setKind} />
        <${Preview} key=${kind} name=${name} recipe=${{ training_type: kind }} /></div>`;
}
