/** Bring a model from the Hugging Face hub: the only thing that asks the network, and only when told to. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { jobs } from '../../core/live.js';
import { WorkButton } from '../../components/controls.js';
import { Dialog } from '../../components/dialog.js';
import { Notice, Problem } from '../../components/feedback.js';
import { TextField } from '../../components/field.js';
import { JobProgress } from '../../components/job.js';

export function HubDownload({ onClose }) {
    const [name, setName] = useState('');
    const [revision, setRevision] = useState('main');
    const [error, setError] = useState(/** @type {any} */ (null));
    const begin = () => {
        setError(null);
        return api.downloadModel(name.trim(), revision.trim() || 'main').catch(setError);
    };
    const downloads = [...jobs.value.values()].filter((job) => job.kind === 'download').reverse();
    return html`<${Dialog} title="Bring a model from the hub" onClose=${onClose}>
        <form class="stack" onSubmit=${(event) => { event.preventDefault(); begin(); }}>
            <${TextField} label="Model" value=${name} placeholder="HuggingFaceTB/SmolLM2-135M-Instruct" hint="Its id on huggingface.co" onChange=${setName} />
            <${TextField} label="Revision" value=${revision} hint="Branch, tag or commit" onChange=${setRevision} />
            ${error && html`<${Problem} error=${error} />`}
            <div class="buttons"><${WorkButton} class="primary" type="submit" disabled=${!name.trim()} onPress=${begin}>Download<//></div>
            ${downloads.map((job) => html`<${Download} key=${job.job_id} job=${job} />`)}
        </form>
    <//>`;
}

function Download({ job }) {
    if (job.status === 'completed') return html`<${Notice} tone="good">${job.result.model_name} is here, ${job.result.size_gb} GB.<//>`;
    return html`<${JobProgress} job=${job} />`;
}
