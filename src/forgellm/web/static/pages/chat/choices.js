/** What can be talked to: models, and runs through their best or latest checkpoint. */
import { api } from '../../core/api.js';
import { baseName } from '../../core/format.js';
import { runsChanged } from '../../core/live.js';
import { useResource } from '../../core/resource.js';

/** @typedef {{key: string, label: string, group: string, pane: {model_name: string, adapter_path: string | null}}} Choice */

export function useChoices() {
    return useResource(readChoices, [runsChanged.value]);
}

export const keyOf = (pane) => `${pane.model_name ?? ''} ${pane.adapter_path ?? ''}`;

/** @returns {Promise<Choice[]>} */
async function readChoices() {
    const [models, runs] = await Promise.all([api.searchModels(''), api.listRuns({ limit: 100 })]);
    const choices = models.models
        .filter((item) => ['base', 'cached', 'published'].includes(item.kind))
        .map((item) => choice(item.kind === 'published' ? 'Published' : 'Models', baseName(item.name), item.path ?? item.name, null));
    for (const run of runs.runs.filter((item) => item.num_checkpoints > 0)) {
        const name = `${run.name}`;
        choices.push(choice('Runs', `${name}, best`, run.model_name, run.output_dir));
        if (run.is_training) choices.push(choice('Runs', `${name}, latest`, run.model_name, `${run.output_dir}@latest`));
    }
    return choices;
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
