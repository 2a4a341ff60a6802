/** The recipe's fields: the few that matter most, and behind one fold all of them. */
import { html, useEffect, useState } from '../../core/html.js';
import { rate } from '../../core/format.js';
import { AnyField } from './any_field.js';
import { batchHint, PROCESS_FIELDS, ProcessFields } from './processes.js';

/** What is chosen elsewhere in the view. */
const ELSEWHERE = new Set(['model_name', 'training_type', 'dataset', 'base_run', 'base_run_mode', 'queue']);
const MAIN = ['max_iterations', 'learning_rate', 'max_seq_length', 'batch_size', 'fine_tune_type', 'lora_rank'];
const GROUPS = [
    ['Steps and batches', ['grad_accum_steps', 'num_layers', 'grad_checkpoint', 'seed', 'engine', 'dtype']],
    ['Learning rate', ['lr_schedule', 'warmup_steps', 'min_lr', 'weight_decay', 'max_grad_norm']],
    ['Adapter', ['lora_alpha', 'lora_dropout', 'lora_target']],
    ['Conversations and preferences', ['loss_on', 'chat_template', 'columns', 'preference_beta']],
    ['Data', ['data_mixture_ratio', 'replay', 'replay_bound', 'replay_dataset', 'validation_split', 'skip_unreadable', 'allow_overlap', 'allow_changed_base']],
    ['Measuring', ['val_batches', 'eval_every', 'report_every', 'probe_files', 'general_files', 'sample_prompts', 'overfitting_threshold', 'early_stopping_patience']],
    ['Checkpoints and reports', ['save_every', 'max_checkpoints', 'report_to', 'webhook_url']],
    ['Several processes', PROCESS_FIELDS],
];
const LABELS = {
    max_iterations: 'Iterations', learning_rate: 'Learning rate', max_seq_length: 'Sequence length', batch_size: 'Batch size',
    fine_tune_type: 'What is trained', lora_rank: 'Adapter rank',
};
const CHAT_FIELDS = new Set(['loss_on', 'chat_template', 'columns']);

export function MainFields({ recipe, change, problems, fields, outlook }) {
    const names = MAIN.filter((name) => name !== 'lora_rank' || (recipe.fine_tune_type ?? 'lora') !== 'full');
    const usual = { max_seq_length: outlook?.max_seq_length, learning_rate: recipe.fine_tune_type === 'full' ? rate(1e-5) : rate(1e-4) };
    const hints = { batch_size: batchHint(recipe, fields.batch_size) };
    return html`<div class="grid fields">${names.map((name) => html`<${AnyField} key=${name} name=${name} label=${LABELS[name]} hint=${hints[name]}
        field=${fields[name]} value=${recipe[name]} error=${problems[name]} usual=${usual[name]} onChange=${(value) => change({ [name]: value })} />`)}</div>`;
}

export function AllFields({ recipe, change, problems, fields }) {
    const placed = new Set([...ELSEWHERE, ...MAIN, ...GROUPS.flatMap(([, names]) => names)]);
    const others = Object.keys(fields).filter((name) => !placed.has(name));
    const groups = others.length ? [...GROUPS, ['More', others]] : GROUPS;
    const set = Object.keys(recipe).filter((name) => !ELSEWHERE.has(name) && !MAIN.includes(name));
    const isWrong = Object.keys(problems).some((name) => !ELSEWHERE.has(name) && !MAIN.includes(name));
    const [isOpen, setOpen] = useState(isWrong);
    // It stays open while one puts right what opened it.
    useEffect(() => { if (isWrong) setOpen(true); }, [isWrong]);
    return html`<details open=${isOpen} onToggle=${(event) => setOpen(event.currentTarget.open)}><summary><strong>All fields</strong> <span class="quiet">${set.length ? `${set.length} set` : 'all at their defaults'}</span></summary>
        ${groups.map(([heading, names]) => {
            const known = /** @type {string[]} */ (names).filter((name) => fields[name] && !(CHAT_FIELDS.has(name) && recipe.training_type === 'cpt'));
            if (!known.length) return null;
            if (names === PROCESS_FIELDS) return html`<${ProcessFields} key=${heading} heading=${heading} recipe=${recipe} change=${change} problems=${problems} fields=${fields} />`;
            return html`<h3 class="group">${heading}</h3><div class="grid fields">${known.map((name) => html`<${AnyField} key=${name} name=${name}
                label=${html`<code>${name}</code>`} field=${fields[name]} value=${recipe[name]} error=${problems[name]} onChange=${(value) => change({ [name]: value })} />`)}</div>`;
        })}
    </details>`;
}
