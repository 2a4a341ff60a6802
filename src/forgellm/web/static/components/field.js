/** Form fields: a label, a control, what it means, what is wrong with it. */
import { html, useMemo } from '../core/html.js';

let number = 0;

/**
 * A labelled control. `children` is called with the attributes that tie it to its label and texts.
 * @param {{label: any, hint?: any, error?: string, children: (attributes: object) => any}} props
 */
export function Field({ label, hint, error, children }) {
    const id = useId();
    const described = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(' ');
    const attributes = { id, 'aria-describedby': described || undefined, 'aria-invalid': error ? 'true' : undefined };
    return html`<div class=${error ? 'field wrong' : 'field'}>
        <label for=${id}>${label}</label>
        ${children(attributes)}
        ${error && html`<p class="error" id=${`${id}-error`}>${error}</p>`}
        ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
    </div>`;
}

function useId() {
    return useMemo(() => `field-${++number}`, []);
}

/** @param {{label: any, value: string, onChange: (value: string) => void, [more: string]: any}} props */
export function TextField({ label, value, onChange, hint, error, ...more }) {
    return html`<${Field} label=${label} hint=${hint} error=${error}>
        ${(attributes) => html`<input type="text" autocomplete="off" spellcheck="false" ...${attributes} ...${more}
            value=${value ?? ''} onInput=${(event) => onChange(event.target.value)} />`}
    <//>`;
}

/** An empty field is null: the default, which `placeholder` shows. */
export function NumberField({ label, value, onChange, hint, error, ...more }) {
    const read = (event) => onChange(event.target.value === '' ? null : Number(event.target.value));
    return html`<${Field} label=${label} hint=${hint} error=${error}>
        ${(attributes) => html`<input type="number" step="any" ...${attributes} ...${more} value=${value ?? ''} onInput=${read} />`}
    <//>`;
}

/** @param {{label: any, value: any, options: Array<string | {value: any, label: string}>, onChange: (value: string) => void, [more: string]: any}} props */
export function SelectField({ label, value, options, onChange, hint, error, ...more }) {
    const items = options.map((option) => (typeof option === 'string' ? { value: option, label: option } : option));
    return html`<${Field} label=${label} hint=${hint} error=${error}>
        ${(attributes) => html`<select ...${attributes} ...${more} value=${value ?? ''} onChange=${(event) => onChange(event.target.value)}>
            ${items.map((item) => html`<option key=${item.value} value=${item.value} selected=${item.value === value}>${item.label}</option>`)}
        </select>`}
    <//>`;
}

export function CheckField({ label, value, onChange, hint, ...more }) {
    return html`<div class="field check">
        <label><input type="checkbox" ...${more} checked=${Boolean(value)} onChange=${(event) => onChange(event.target.checked)} /> ${label}</label>
        ${hint && html`<p class="hint">${hint}</p>`}
    </div>`;
}

/** A few choices side by side, of which one holds: radio buttons that look like one control. */
export function Choice({ label, value, options, onChange }) {
    const name = useId();
    return html`<fieldset class="choice"><legend>${label}</legend>
        <div>${options.map(
            (option) => html`<label key=${option.value} class=${option.value === value ? 'chosen' : ''} title=${option.hint}>
                <input type="radio" name=${name} value=${option.value} checked=${option.value === value} disabled=${option.disabled}
                    onChange=${() => onChange(option.value)} />${option.label}
            </label>`,
        )}</div>
    </fieldset>`;
}
