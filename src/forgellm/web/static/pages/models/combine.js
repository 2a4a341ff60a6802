/** One model of several adapters: which, with what weight, and by what method. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { figure } from '../../core/format.js';
import { useResource } from '../../core/resource.js';
import { AskedForm } from '../../components/asked_form.js';
import { Dialog } from '../../components/dialog.js';
import { Notice, Shown } from '../../components/feedback.js';
import { NumberField, SelectField, TextField } from '../../components/field.js';

const METHODS = [
    { value: 'linear', label: 'Linear: the weighted sum' },
    { value: 'ties', label: 'TIES: only what they agree on in sign' },
    { value: 'dare_linear', label: 'DARE, then the weighted sum' },
    { value: 'dare_ties', label: 'DARE, then TIES' },
];

export function Combine({ onClose }) {
    const found = useResource(() => api.listRuns({ limit: 500 }));
    return html`<${Dialog} title="Combine adapters to one model" wide onClose=${onClose}>
        <${Shown} resource=${found} what="Looking for runs">${({ runs }) => html`<${Form} runs=${runs.filter((run) => run.num_checkpoints > 0)} onClose=${onClose} />`}<//>
    <//>`;
}

function Form({ runs, onClose }) {
    const [parts, setParts] = useState(/** @type {Map<string, {iteration: number | null, weight: number | null}>} */ (new Map()));
    const [name, setName] = useState('');
    const [method, setMethod] = useState('linear');
    const [density, setDensity] = useState(/** @type {number | null} */ (null));
    const base = runs.find((run) => parts.has(run.name))?.model_name;
    const usable = base ? runs.filter((run) => run.model_name === base) : runs;
    const change = (run, part) => setParts(new Map([...parts, [run.name, part]]));
    const turn = (run) => (parts.has(run.name) ? setParts(new Map([...parts].filter(([key]) => key !== run.name))) : change(run, { iteration: null, weight: null }));
    const ask = () => {
        const chosen = [...parts].map(([run, { iteration }]) => (iteration === null ? run : `${run}@${iteration}`));
        const weights = [...parts.values()].map((part) => part.weight);
        const options = { method, ...(weights.some((weight) => weight !== null) && { weights: weights.map((weight) => weight ?? 1) }), ...(density !== null && method !== 'linear' && { density }) };
        return api.combineAdapters(chosen, name.trim(), options);
    };
    if (runs.length < 2) return html`<${Notice}>It takes two runs of the same base model that have checkpoints.<//>`;
    return html`<${AskedForm} action="Combine" disabled=${parts.size < 2 || !name.trim()} ask=${ask} onDone=${onClose}>
        <fieldset class="stack"><legend>Runs of one base model</legend>
            <ul class="pick-list">${usable.map((run) => html`<li key=${run.training_id}><label>
                <input type="checkbox" checked=${parts.has(run.name)} onChange=${() => turn(run)} />
                <span class="grow">${run.name}<br /><span class="quiet small-text">${run.training_type.toUpperCase()} of ${run.model_name} on ${run.dataset}, best validation loss ${figure(run.best_validation_loss)}</span></span></label></li>`)}</ul>
        </fieldset>
        ${[...parts].map(([run, part]) => html`<fieldset class="grid halves" key=${run}><legend>${run}</legend>
            <${NumberField} label="Checkpoint" value=${part.iteration} placeholder="its best" min="1" step="1" onChange=${(iteration) => change({ name: run }, { ...part, iteration })} />
            <${NumberField} label="Weight" value=${part.weight} placeholder=${method.endsWith('ties') ? '1' : 'an equal share'} onChange=${(weight) => change({ name: run }, { ...part, weight })} /></fieldset>`)}
        <div class="grid">
            <${SelectField} label="Method" value=${method} options=${METHODS} onChange=${setMethod} />
            ${method !== 'linear' && html`<${NumberField} label="Density" value=${density} placeholder="0.5" min="0" max="1" onChange=${setDensity} hint="Share of each change that is kept" />`}
            <${TextField} label="Name" value=${name} placeholder="both" onChange=${setName} hint="Of the folder in models/published/" />
        </div>
    <//>`;
}
