/** Datasets: all of them, or one with its files, what is in it, and a cleaned copy. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { megabytes, plural, short } from '../../core/format.js';
import { useResource } from '../../core/resource.js';
import { address, navigate } from '../../core/router.js';
import { Empty, Shown } from '../../components/feedback.js';
import { Icon } from '../../components/icon.js';
import { Dataset } from './dataset.js';
import { Upload } from './upload.js';

export const title = 'Data';
export const titleOf = (name) => name || title;

export function View({ name, query }) {
    return name ? html`<${Dataset} key=${name} name=${name} query=${query} />` : html`<${List} />`;
}

function List() {
    const datasets = useResource(() => api.datasetInfo(), []);
    const [isUploading, setUploading] = useState(false);
    return html`<div class="page">
        <div class="page-head"><h1>Data</h1><button class="primary" onClick=${() => setUploading(true)}><${Icon} name="upload" /> Upload</button></div>
        <${Shown} resource=${datasets} what="Looking into the datasets">${(reply) => reply.datasets.length === 0
            ? html`<${Empty} title="No data here yet"><p>Upload documents or conversations, or put a folder of them into <code>dataset/</code> in the workspace.</p><//>`
            : html`<div class="grid">${reply.datasets.map((item) => html`<a class="card link-card" key=${item.name} href=${address('data', item.name)}>
                <h2 class="cut" title=${item.name}>${item.name}</h2>
                <p>${plural(item.file_count, 'file')}, ${megabytes(item.total_size_mb)}</p>
                <p class="quiet">${item.estimated_tokens ? `about ${short(item.estimated_tokens)} tokens` : ' '}</p></a>`)}</div>
            ${reply.tokenizer && html`<p class="quiet small-text">Tokens as ${reply.tokenizer} counts them, estimated from a sample.</p>`}`}
        <//>
        ${isUploading && html`<${Upload} onClose=${() => setUploading(false)} onDone=${(name) => navigate(address('data', name))} />`}
    </div>`;
}
