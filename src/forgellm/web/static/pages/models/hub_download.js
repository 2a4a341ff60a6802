/** Bring a model from the Hugging Face hub: the only thing that asks the network, and only when told to. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { jobs } from '../../core/live.js';
import { AskedForm } from '../../components/asked_form.js';
import { Dialog } from '../../components/dialog.js';
import { Notice } from '../../components/feedback.js';
import { TextField } from '../../components/field.js';
import { JobProgress } from '../../components/job.js';

export function HubDownload({ onClose }) {
    const [name, setName] = useState('');
    const [revision, setRevision] = useState('main');
    const downloads = [...jobs.value.values()].filter((job) => job.kind === 'download').reverse();
    return html`<${Dialog} title="Bring a model from the hub" onClose=${onClose}>
        <div class="stack">
            <${AskedForm} action="Download" disabled=${!name.trim()} onDone=${() => {}} ask=${() => api.downloadModel(name.trim(), revision.trim() || 'main')}>
                <${TextField} label="Model" value=${name} placeholder="HuggingFaceTB/SmolLM2-135M-Instruct" hint="Its id on huggingface.co" onChange=${setName} />
                <${TextField} label="Revision" value=${revision} hint="Branch, tag or commit" onChange=${setRevision} />
            <//>
            ${downloads.map((job) => html`<${Download} key=${job.job_id} job=${job} />`)}
        </div>
    <//>`;
}

function Download({ job }) {
    if (job.status === 'completed') return html`<${Notice} tone="good">${job.result.model_name} is here, ${job.result.size_gb} GB.<//>`;
    return html`<${JobProgress} job=${job} />`;
}
