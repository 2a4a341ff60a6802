/** One field of a recipe: a control that suits what the server says of it. */
import { html } from '../../core/html.js';
import { CheckField, Field, NumberField, SelectField, TextField } from '../../components/field.js';

const CHOICES = { lora: 'a small adapter (LoRA)', dora: 'an adapter with magnitudes (DoRA)', full: 'all weights' };

/** Without a `hint`, the server's own words. */
export function AnyField({ name, label, field, value, error, usual, hint = undefined, onChange }) {
    const shape = shapeOf(field);
    const common = { label, error, hint: hint ?? field.description };
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
