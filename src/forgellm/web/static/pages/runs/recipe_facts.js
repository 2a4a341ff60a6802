/** What decided the run: its recipe, the model, the data, the machine; and the commands that would repeat it. */
import { html } from '../../core/html.js';
import { count, figure, gigabytes, percent, short } from '../../core/format.js';
import { commandOf, curlOf, yamlOf } from '../../core/recipe.js';
import { CopyButton, saveFile } from '../../components/controls.js';

export function RecipeFacts({ record }) {
    const { recipe, data, model, memory } = record;
    return html`<div class="grid halves">
        <section class="card"><div class="card-head"><h2>Recipe</h2>
            <button class="small" onClick=${() => saveFile(`${record.name}.yaml`, yamlOf(recipe), 'application/yaml')}>Save as YAML</button></div>
            <dl class="facts">${Object.entries(recipe).map(([name, value]) => html`<dt class="mono">${name}</dt><dd>${written(value)}</dd>`)}</dl>
        </section>
        <div class="stack">
            <${Facts} title="Model" rows=${[
                ['Name', model.name], ['Architecture', model.architecture], ['Parameters', short(model.num_parameters)],
                ['Trained', `${short(model.num_trainable)} (${percent(model.num_trainable / model.num_parameters, 1)})`], ['Context', `${count(model.context_length)} tokens`],
            ]} />
            <${Facts} title="Data" rows=${[
                ['Documents', `${count(data.train_documents)} to train, ${count(data.validation_documents)} held out`],
                ['Tokens', `${count(data.train_tokens)} to train, ${count(data.validation_tokens)} held out`],
                ['Passes over the documents', figure(data.epochs, 2)], ['Share of the dataset', percent(data.achieved_mixture_ratio, 1)],
                ['Fingerprint', html`<span class="mono cut" title=${data.fingerprint}>${data.fingerprint?.slice(0, 16)}</span>`],
            ]} />
            <${Facts} title="Machine" rows=${[
                ['Engine', `${record.engine} on ${record.device}, ${record.dtype}`], ['Why that type', record.dtype_reason],
                ['Memory, estimated and measured', `${gigabytes(memory.estimated_gb)}, ${gigabytes(memory.measured_gb)}`],
                ...Object.entries(record.versions).map(([name, version]) => [name, version]),
            ]} />
            <section class="card"><div class="card-head"><h2>The same again</h2></div>
                <div class="stack"><pre class="code wrap">${commandOf(recipe)}</pre><div class="row"><${CopyButton} label="Copy command" text=${commandOf(recipe)} /><${CopyButton} label="Copy curl" text=${curlOf(recipe)} /></div></div>
            </section>
        </div>
    </div>`;
}

function Facts({ title, rows }) {
    const known = rows.filter(([, value]) => value !== undefined && value !== null && value !== '');
    if (!known.length) return null;
    return html`<section class="card"><h2>${title}</h2><dl class="facts">${known.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl></section>`;
}

function written(value) {
    if (value === null) return html`<span class="quiet">default</span>`;
    if (Array.isArray(value)) return value.length ? value.join(', ') : html`<span class="quiet">none</span>`;
    return typeof value === 'object' ? JSON.stringify(value) : String(value);
}
