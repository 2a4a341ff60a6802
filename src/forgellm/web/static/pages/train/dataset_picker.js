/** Which documents or conversations are taught: a folder of the workspace, or files dropped here. */
import { html, useState } from '../../core/html.js';
import { megabytes, plural, short } from '../../core/format.js';
import { Empty, Problem } from '../../components/feedback.js';
import { Icon } from '../../components/icon.js';
import { PreviewDialog } from '../data/preview.js';
import { Upload } from '../data/upload.js';

/** `datasets` is the resource of what GET /api/dataset/info says. */
export function DatasetPicker({ recipe, change, problems, datasets }) {
    const [isUploading, setUploading] = useState(false);
    const [isPreviewed, setPreviewed] = useState(false);
    const found = datasets.data?.datasets ?? [];
    const uploaded = (name) => {
        setUploading(false);
        datasets.reload();
        change({ dataset: name });
    };
    return html`<div class="stack">
        <div class="card-head"><h2>${recipe.training_type === 'cpt' ? 'Documents' : recipe.training_type === 'ift' ? 'Conversations' : 'Preferences'}</h2>
            ${recipe.dataset && html`<button type="button" class="small" onClick=${() => setPreviewed(true)}>See what the model sees</button>`}
            <button type="button" class="small" onClick=${() => setUploading(true)}><${Icon} name="upload" size=${14} /> Upload</button></div>
        ${datasets.error && html`<${Problem} error=${datasets.error} onRetry=${datasets.reload} />`}
        ${datasets.data && found.length === 0 && html`<${Empty} title="No data here yet"><p>Upload files, or put a folder of them into <code>dataset/</code>.</p><//>`}
        <div class="options" role="radiogroup" aria-label="Dataset">${found.map((item) => html`<label key=${item.name} class=${item.name === recipe.dataset ? 'option chosen' : 'option'}>
            <input type="radio" name="dataset" checked=${item.name === recipe.dataset} onChange=${() => change({ dataset: item.name })} />
            <span class="grow"><span class="cut block" title=${item.name}>${item.name}</span><span class="quiet small-text">${plural(item.file_count, 'file')}, ${megabytes(item.total_size_mb)}${item.estimated_tokens ? `, about ${short(item.estimated_tokens)} tokens` : ''}</span></span>
        </label>`)}</div>
        ${problems.dataset && html`<p class="error">${problems.dataset}</p>`}
        ${isUploading && html`<${Upload} onClose=${() => setUploading(false)} onDone=${uploaded} />`}
        ${isPreviewed && html`<${PreviewDialog} name=${recipe.dataset} recipe=${recipe} onClose=${() => setPreviewed(false)} />`}
    </div>`;
}
