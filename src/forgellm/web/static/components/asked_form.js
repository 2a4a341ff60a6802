/** A form whose end asks the server for something; what the server refuses is said in it. */
import { html, useState } from '../core/html.js';
import { Problem } from './feedback.js';

/**
 * @param {{action: string, ask: () => Promise<any>, onDone: () => void, disabled?: boolean,
 *     also?: {label: string, ask: () => Promise<any>}, children: any}} props
 *     `also` is a second thing that can be asked with the same fields.
 */
export function AskedForm({ action, ask, onDone, disabled = false, also, children }) {
    const [error, setError] = useState(/** @type {any} */ (null));
    const [isBusy, setBusy] = useState(false);
    const isHeld = disabled || isBusy;
    const press = (how) => {
        setError(null);
        setBusy(true);
        how().then(onDone, setError).finally(() => setBusy(false));
    };
    return html`<form class="stack" onSubmit=${(event) => { event.preventDefault(); if (!isHeld) press(ask); }}>
        ${children}
        ${error && html`<${Problem} error=${error} />`}
        <div class="buttons end">
            ${also && html`<button type="button" disabled=${isHeld} onClick=${() => press(also.ask)}>${also.label}</button>`}
            <button type="submit" class="primary" disabled=${isHeld} aria-busy=${isBusy}>${isBusy && html`<span class="spinner" aria-hidden="true"></span>`} ${action}</button>
        </div>
    </form>`;
}
