/** What can be talked to: models, and runs through their best or latest checkpoint; or what an upstream has. */
import { api } from '../../core/api.js';
import { baseName } from '../../core/format.js';
import { runsChanged } from '../../core/live.js';
import { useResource } from '../../core/resource.js';

/** Of so many runs every checkpoint can be chosen, not only the best. */
const NEWEST = 10;

/** @typedef {{key: string, label: string, group: string, pane: {model_name: string, adapter_path: string | null}}} Choice */

export function useChoices() {
    return useResource(readChoices, [runsChanged.value]);
}

export const keyOf = (pane) => `${pane.model_name ?? ''} ${pane.adapter_path ?? ''}`;

/** @returns {Promise<Choice[]>} */
async function readChoices() {
    const [models, runs, status] = await Promise.all([api.searchModels(''), api.listRuns({ limit: 100 }), api.modelStatus().catch(() => null)]);
    if (status?.upstream_models) return status.upstream_models.map((name) => choice('Upstream', baseName(name), name, null));
    const choices = models.models
        .filter((item) => ['base', 'cached', 'published'].includes(item.kind))
        .map((item) => choice(item.kind === 'published' ? 'Published' : 'Models', baseName(item.name), item.path ?? item.name, null));
    const trained = runs.runs.filter((item) => item.num_checkpoints > 0);
    for (const run of trained) {
        choices.push(choice('Runs', `${run.name}, best`, run.model_name, run.output_dir));
        if (run.is_training) choices.push(choice('Runs', `${run.name}, latest`, run.model_name, `${run.output_dir}@latest`));
    }
    return [...choices, ...(await Promise.all(trained.slice(0, NEWEST).map(checkpointsOf))).flat()];
}

/** Each checkpoint of a run, for one against the other. */
async function checkpointsOf(run) {
    const { checkpoints } = await api.checkpoints(run.output_dir);
    return checkpoints.map(({ iteration }) => choice(run.name, `iteration ${iteration}`, run.model_name, `${run.output_dir}@${iteration}`));
}

function choice(group, label, model_name, adapter_path) {
    const pane = { model_name, adapter_path };
    return { key: keyOf(pane), label, group, pane };
}

/** How a pane is called: the run and its checkpoint, or the model. */
export function labelOf(pane) {
    if (!pane?.model_name) return 'no model';
    return pane.adapter_path ? baseName(pane.adapter_path) : baseName(pane.model_name);
}
