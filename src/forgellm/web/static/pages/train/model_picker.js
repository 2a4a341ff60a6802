/** Which model is taught: one on this machine, an earlier run's result, or one from the hub. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { baseName, gigabytes } from '../../core/format.js';
import { runsChanged } from '../../core/live.js';
import { useResource } from '../../core/resource.js';
import { Empty, Problem } from '../../components/feedback.js';
import { SelectField } from '../../components/field.js';
import { Icon } from '../../components/icon.js';
import { HubDownload } from '../models/hub_download.js';

const SHOWN = 8;
const isModel = (item) => ['base', 'cached', 'published'].includes(item.kind);

export function ModelPicker({ recipe, change, problems }) {
    const [wanted, setWanted] = useState('');
    const [isHubOpen, setHubOpen] = useState(false);
    const models = useResource(() => api.searchModels(''), []);
    const runs = useResource(() => api.listRuns({ limit: 100 }), [runsChanged.value]);
    const words = wanted.toLowerCase().split(/\s+/);
    const all = (models.data?.models ?? []).filter(isModel);
    const found = all.filter((item) => words.every((word) => nameOf(item).toLowerCase().includes(word)));
    const trained = (runs.data?.runs ?? []).filter((run) => run.num_checkpoints > 0);
    return html`<div class="stack">
        <div class="card-head"><h2>Model</h2><button type="button" class="small" onClick=${() => setHubOpen(true)}><${Icon} name="download" size=${14} /> From the hub</button></div>
        ${models.error && html`<${Problem} error=${models.error} onRetry=${models.reload} />`}
        ${models.data && all.length === 0 && html`<${Empty} title="No model here yet"><p>Bring one from the hub, put a folder into <code>models/base/</code>, or set up the demo from the <a href="/">start</a>.</p><//>`}
        ${all.length > SHOWN && html`<label><span class="hidden">Search models</span><input type="search" placeholder="Search models" value=${wanted} onInput=${(event) => setWanted(event.target.value)} /></label>`}
        <div class="options" role="radiogroup" aria-label="Model">${found.slice(0, SHOWN).map((item) => html`<${Option} key=${nameOf(item)} item=${item}
            isChosen=${!recipe.base_run && isSame(item, recipe.model_name)} onChoose=${() => change({ model_name: nameOf(item), base_run: null, base_run_mode: null })} />`)}</div>
        ${found.length > SHOWN && html`<p class="quiet small-text">${found.length - SHOWN} more; search for them.</p>`}
        ${trained.length > 0 && html`<div class="grid fields">
            <${SelectField} label="Or go on from an earlier run" value=${recipe.base_run ?? ''} hint="Its best checkpoint; write @iteration after a run's name in a recipe file for another."
                options=${[{ value: '', label: 'no' }, ...trained.map((run) => ({ value: run.name, label: `${run.name} (${run.training_type})` }))]}
                onChange=${(name) => change(name ? { base_run: name, model_name: null } : { base_run: null, base_run_mode: null })} />
            ${recipe.base_run && html`<${SelectField} label="How" value=${recipe.base_run_mode ?? 'merged'} options=${[{ value: 'merged', label: 'merge it into the model, train a new adapter' }, { value: 'stacked', label: 'train its adapter on' }]} onChange=${(mode) => change({ base_run_mode: mode })} />`}
        </div>`}
        ${problems.model_name && html`<p class="error">${problems.model_name}</p>`}
        ${isHubOpen && html`<${HubDownload} onClose=${() => { setHubOpen(false); models.reload(); }} />`}
    </div>`;
}

/** What a recipe names it by. */
export function nameOf(item) {
    return item.path ?? item.name;
}

/** A model in models/base/ may be named without the folder. */
const isSame = (item, name) => Boolean(name) && [nameOf(item), item.name].some((known) => known === name || known === `base/${name}`);

function Option({ item, isChosen, onChoose }) {
    const kind = item.type === 'instruct' ? 'answers chat turns' : 'continues text';
    return html`<label class=${isChosen ? 'option chosen' : 'option'}>
        <input type="radio" name="model" checked=${isChosen} onChange=${onChoose} />
        <span class="grow"><span class="cut block" title=${item.name}>${baseName(item.name)}</span><span class="quiet small-text">${kind}, ${gigabytes(item.size_gb)}${item.kind === 'published' ? ', published here' : ''}</span></span>
    </label>`;
}
