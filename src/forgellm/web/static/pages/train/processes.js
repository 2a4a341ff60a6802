/** A run in several processes: how many, on which machines, and whether they can share a batch. */
import { html } from '../../core/html.js';
import { api } from '../../core/api.js';
import { counted, gigabytes, plural } from '../../core/format.js';
import { useResource } from '../../core/resource.js';
import { Notice, Problem } from '../../components/feedback.js';
import { AnyField } from './any_field.js';

/** For machines where each is started by hand, not from here: shown where a recipe has them. */
const BY_HAND = ['nnodes', 'rdzv_endpoint'];
export const PROCESS_FIELDS = ['hosts', 'nproc_per_node', 'max_restarts', 'parallelism', 'cpu_offload', ...BY_HAND];

export function ProcessFields({ heading, recipe, change, problems, fields }) {
    const health = useResource(() => api.health(), []);
    const names = PROCESS_FIELDS.filter((name) => name !== 'hosts' && (name in recipe || !BY_HAND.includes(name)));
    return html`<h3 class="group">${heading}</h3><div class="stack">
        ${health.data && html`<p class="quiet small-text">${machineSaid(health.data.system_info)}</p>`}
        <${Hosts} chosen=${recipe.hosts ?? []} hint=${fields.hosts.description} error=${problems.hosts} onChange=${(value) => change({ hosts: value })} />
        <div class="grid fields">${names.map((name) => html`<${AnyField} key=${name} name=${name} label=${html`<code>${name}</code>`}
            field=${fields[name]} value=${recipe[name]} error=${problems[name]} onChange=${(value) => change({ [name]: value })} />`)}</div>
        <div role="status"><${Sharing} recipe=${recipe} fields=${fields} change=${change} /></div>
    </div>`;
}

function machineSaid({ gpus, num_cores, memory_total_gb }) {
    if (gpus.length > 1) return `This machine has ${gpus.length} GPUs (${counted(gpus)}): up to ${gpus.length} processes, one for each.`;
    if (gpus.length === 1) return `This machine has one GPU (${gpus[0]}), for one process.`;
    return `This machine has ${plural(num_cores, 'core')}, ${gigabytes(memory_total_gb)} of memory and no NVIDIA GPU. One process uses all of it already; several help only where there are many cores, or several sockets.`;
}

/** Which of the machines in hosts.toml train along, in the order of that file. */
function Hosts({ chosen, hint, error, onChange }) {
    const hosts = useResource(() => api.listHosts(), []);
    if (hosts.error) return html`<${Problem} error=${hosts.error} onRetry=${hosts.reload} />`;
    if (!hosts.data) return null;
    const known = hosts.data.hosts;
    const unknown = chosen.filter((name) => !known.some((host) => host.name === name));
    const all = [...known, ...unknown.map((name) => ({ name, address: 'not in hosts.toml' }))];
    if (!all.length) return html`<p class="quiet small-text">Other machines can train along once a file <code>hosts.toml</code> names them: see <code>docs/hosts.md</code>.</p>`;
    const turn = (name, isOn) => {
        const names = all.map((host) => host.name).filter((other) => (other === name ? isOn : chosen.includes(other)));
        onChange(names.length ? names : null);
    };
    return html`<fieldset class="field check"><legend><code>hosts</code></legend>
        ${all.map(({ name, address }) => html`<label key=${name}><input type="checkbox" checked=${chosen.includes(name)} onChange=${(event) => turn(name, event.target.checked)} />
            <span>${name} <span class="quiet small-text">${address}</span></span></label>`)}
        ${error && html`<p class="error">${error}</p>`}
        <p class="hint">${hint} <code>forgellm hosts check</code> says whether they can.</p>
    </fieldset>`;
}

function Sharing({ recipe, fields, change }) {
    const [processes, batch] = [numProcesses(recipe), batchOf(recipe, fields)];
    if (processes === 1) return null;
    if (batch % processes === 0) return html`<p class="quiet small-text">${processes} processes share each batch of ${batch}: ${plural(batch / processes, 'sequence')} for each.</p>`;
    const fitting = fittingBatch(batch, processes);
    return html`<${Notice} tone="bad"><span>${processes} processes cannot share a batch of ${batch} evenly.</span>
        <button type="button" class="small" onClick=${() => change({ batch_size: fitting })}>Use a batch of ${fitting}</button><//>`;
}

/** What to say at the batch size besides what it is. */
export function batchHint(recipe, field) {
    const processes = numProcesses(recipe);
    return processes > 1 ? `${field.description} A multiple of ${processes}, the processes that share them.` : field.description;
}

/** What is wrong with the batch size before the server is asked. */
export function batchProblem(recipe, fields) {
    const [processes, batch] = [numProcesses(recipe), batchOf(recipe, fields)];
    if (batch % processes === 0) return {};
    return { batch_size: `Must be a multiple of the ${processes} processes, such as ${fittingBatch(batch, processes)}.` };
}

/** On all machines together; 1 while what is typed is no number of processes. */
function numProcesses(recipe) {
    const machines = Math.max(recipe.nnodes ?? 1, (recipe.hosts ?? []).length + 1);
    const processes = (recipe.nproc_per_node ?? 1) * machines;
    return Number.isInteger(processes) && processes > 0 ? processes : 1;
}

const batchOf = (recipe, fields) => recipe.batch_size ?? fields.batch_size.default;
const fittingBatch = (batch, processes) => Math.max(1, Math.ceil(batch / processes)) * processes;
