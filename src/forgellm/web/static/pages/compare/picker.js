/** Which runs are compared: chips that can be taken away, and a field that finds more. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { baseName } from '../../core/format.js';
import { useResource } from '../../core/resource.js';
import { Icon } from '../../components/icon.js';

export function RunPicker({ names, most, onChange }) {
    const [isOpen, setOpen] = useState(names.length === 0);
    const [wanted, setWanted] = useState('');
    const runs = useResource(() => api.listRuns({ limit: 500 }));
    const shown = (runs.data?.runs ?? []).filter((run) => `${run.name} ${run.model_name} ${run.dataset}`.toLowerCase().includes(wanted.toLowerCase()));
    const isChosen = (run) => names.includes(run.name) || names.includes(run.training_id);
    const turn = (run) => onChange(isChosen(run) ? names.filter((name) => name !== run.name && name !== run.training_id) : [...names, run.name]);
    return html`<section class="card stack">
        <div class="row">
            ${names.map((name, at) => html`<span class="chip" key=${name}><span class=${`swatch color-${at + 1}`}></span><span class="cut">${name}</span>
                <button class="bare" aria-label=${`Take away ${name}`} onClick=${() => onChange(names.filter((item) => item !== name))}><${Icon} name="close" size=${14} /></button></span>`)}
            <button class="small" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}><${Icon} name=${isOpen ? 'close' : 'plus'} size=${14} /> ${isOpen ? 'Close' : 'Add runs'}</button>
        </div>
        ${isOpen && html`<div class="stack">
            <label><span class="hidden">Search runs</span><input type="search" placeholder="Search by name, model or dataset" value=${wanted} onInput=${(event) => setWanted(event.target.value)} /></label>
            <ul class="pick-list">${shown.map((run) => html`<li key=${run.training_id}><label>
                <input type="checkbox" checked=${isChosen(run)} disabled=${!isChosen(run) && names.length >= most} onChange=${() => turn(run)} />
                <span class="grow">${run.name}<br /><span class="quiet small-text">${run.training_type.toUpperCase()} of ${baseName(run.model_name)} on ${run.dataset}</span></span></label></li>`)}
                ${runs.data && !shown.length && html`<li class="quiet">No run has that in its name.</li>`}</ul>
        </div>`}
    </section>`;
}
