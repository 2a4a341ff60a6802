/** The recipe's fields: the few that matter most, and behind one fold all of them. */
import { html } from '../../core/html.js';
import { rate } from '../../core/format.js';
import { CheckField, Field, NumberField, SelectField, TextField } from '../../components/field.js';

/** What is chosen elsewhere in the view. */
const ELSEWHERE = new Set(['model_name', 'training_type', 'dataset', 'base_run', 'base_run_mode', 'queue']);
const MAIN = ['max_iterations', 'learning_rate', 'max_seq_length', 'batch_size', 'fine_tune_type', 'lora_rank'];
const GROUPS = [
    ['Steps and batches', ['grad_accum_steps', 'num_layers', 'grad_checkpoint', 'seed', 'engine', 'dtype']],
    ['Learning rate', ['lr_schedule', 'warmup_steps', 'min_lr', 'weight_decay', 'max_grad_norm']],
    ['Adapter', ['lora_alpha', 'lora_dropout', 'lora_target']],
    ['Conversations and preferences', ['loss_on', 'chat_template', 'columns', 'preference_beta']],
    ['Data', ['data_mixture_ratio', 'replay', 'replay_bound', 'replay_dataset', 'validation_split', 'allow_overlap']],
    ['Measuring', ['val_batches', 'eval_every', 'report_every', 'probe_files', 'general_files', 'sample_prompts', 'overfitting_threshold', 'early_stopping_patience']],
    ['Checkpoints and reports', ['save_every', 'max_checkpoints', 'report_to', 'webhook_url']],
];
const LABELS = {
    max_iterations: 'Iterations', learning_rate: 'Learning rate', max_seq_length: 'Sequence length', batch_size: 'Batch size',
    fine_tune_type: 'What is trained', lora_rank: 'Adapter rank',
};
const CHOICES = { lora: 'a small adapter (LoRA)', dora: 'an adapter with magnitudes (DoRA)', full: 'all weights' };
const CHAT_FIELDS = new Set(['loss_on', 'chat_template', 'columns']);

export function MainFields({ recipe, change, problems, fields, outlook }) {
    const names = MAIN.filter((name) => name !== 'lora_rank' || (recipe.fine_tune_type ?? 'lora') !== 'full');
    const usual = { max_seq_length: outlook?.max_seq_length, learning_rate: recipe.fine_tune_type === 'full' ? rate(1e-5) : rate(1e-4) };
    return html`<div class="grid fields">${names.map((name) => html`<${AnyField} key=${name} name=${name} label=${LABELS[name]}
        field=${fields[name]} value=${recipe[name]} error=${problems[name]} usual=${usual[name]} onChange=${(value) => change({ [name]: value })} />`)}</div>`;
}

export function AllFields({ recipe, change, problems, fields }) {
    const placed = new Set([...ELSEWHERE, ...MAIN, ...GROUPS.flatMap(([, names]) => names)]);
    const others = Object.keys(fields).filter((name) => !placed.has(name));
    const groups = others.length ? [...GROUPS, ['More', others]] : GROUPS;
    const set = Object.keys(recipe).filter((name) => !ELSEWHERE.has(name) && !MAIN.includes(name));
    const isWrong = Object.keys(problems).some((name) => !ELSEWHERE.has(name) && !MAIN.includes(name));
    return html`<details open=${isWrong}><summary><strong>All fields</strong> <span class="quiet">${set.length ? `${set.length} set` : 'all at their defaults'}</span></summary>
        ${groups.map(([heading, names]) => {
            const known = /** @type {string[]} */ (names).filter((name) => fields[name] && !(CHAT_FIELDS.has(name) && recipe.training_type === 'cpt'));
            if (!known.length) return null;
            return html`<h3 class="group">${heading}</h3><div class="grid fields">${known.map((name) => html`<${AnyField} key=${name} name=${name}
                label=${html`<code>${name}</code>`} field=${fields[name]} value=${recipe[name]} error=${problems[name]} onChange=${(value) => change({ [name]: value })} />`)}</div>`;
        })}
    </details>`;
}

/** A control that suits what the server says of the field. */
function AnyField({ name, label, field, value, error, usual, onChange }) {
    const shape = shapeOf(field);
    const common = { label, error, hint: field.description };
    if (shape.kind === 'boolean') return html`<${CheckField} label=${label} hint=${field.description} value=${value ?? field.default} onChange=${(on) => onChange(on === field.default ? null : on)} />`;
    if (shape.kind === 'choice') {
        const options = shape.values.map((item) => ({ value: item, label: `${CHOICES[item] ?? item}${item === field.default ? ' (default)' : ''}` }));
        return html`<${SelectField} ...${common} value=${value ?? field.default} options=${options} onChange=${(chosen) => onChange(chosen === field.default ? null : chosen)} />`;
    }
    if (shape.kind === 'number') {
        const placeholder = usual ?? field.default ?? 'default';
        return html`<${NumberField} ...${common} value=${value} placeholder=${String(placeholder)} min=${shape.minimum} max=${shape.maximum}
            step=${shape.isWhole ? 1 : 'any'} inputmode=${shape.isWhole ? 'numeric' : 'decimal'} onChange=${onChange} />`;
    }
    if (shape.kind === 'list') return html`<${ListField} ...${common} name=${name} value=${value} onChange=${onChange} />`;
    if (shape.kind === 'object') return html`<${ObjectField} ...${common} value=${value} onChange=${onChange} />`;
    return html`<${TextField} ...${common} value=${value} placeholder=${field.default ?? ''} onChange=${onChange} />`;
}

/** What kind of value a field takes, past "or null". */
function shapeOf(field) {
    const variants = (field.anyOf ?? [field]).filter((item) => item.type !== 'null');
    const whole = variants.find((item) => item.type === 'integer');
    const number = whole ?? variants.find((item) => item.type === 'number');
    if (number) {
        return { kind: 'number', isWhole: Boolean(whole), minimum: number.minimum ?? number.exclusiveMinimum, maximum: number.maximum ?? number.exclusiveMaximum };
    }
    if (variants.some((item) => item.type === 'boolean')) return { kind: 'boolean' };
    const choice = variants.find((item) => item.enum);
    if (choice) return { kind: 'choice', values: choice.enum };
    if (variants.some((item) => item.type === 'array')) return { kind: 'list' };
    return { kind: variants.some((item) => item.type === 'object') ? 'object' : 'text' };
}

/** One item a line. */
function ListField({ label, value, onChange, hint, error }) {
    const read = (event) => {
        const items = event.target.value.split('\n').map((item) => item.trim()).filter(Boolean);
        onChange(items.length ? items : null);
    };
    return html`<${Field} label=${label} hint=${`${hint} One a line.`} error=${error}>
        ${(attributes) => html`<textarea rows="2" ...${attributes} value=${(value ?? []).join('\n')} onChange=${read}></textarea>`}
    <//>`;
}

function ObjectField({ label, value, onChange, hint, error }) {
    const read = (event) => {
        const pairs = event.target.value.split('\n').map((line) => line.split('=').map((part) => part.trim())).filter((pair) => pair.length === 2 && pair[0]);
        onChange(pairs.length ? Object.fromEntries(pairs) : null);
    };
    return html`<${Field} label=${label} hint=${`${hint} One name=value a line.`} error=${error}>
        ${(attributes) => html`<textarea rows="2" ...${attributes} value=${Object.entries(value ?? {}).map(([key, item]) => `${key}=${item}`).join('\n')} onChange=${read}></textarea>`}
    <//>`;
}
