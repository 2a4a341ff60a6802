/** Modal dialogs, on the browser's own <dialog>: it keeps the focus inside and closes on Escape. */
import { html, signal, useEffect, useRef } from '../core/html.js';
import { Icon } from './icon.js';

/** @param {{title: string, onClose: () => void, wide?: boolean, children: any, footer?: any}} props */
export function Dialog({ title, onClose, wide = false, children, footer }) {
    const ref = useRef(/** @type {HTMLDialogElement | null} */ (null));
    useEffect(() => {
        const dialog = ref.current;
        dialog?.showModal();
        return () => dialog?.close();
    }, []);
    const closeOutside = (event) => event.target === ref.current && onClose();
    return html`<dialog ref=${ref} class=${wide ? 'wide' : ''} aria-label=${title}
        onCancel=${(event) => { event.preventDefault(); onClose(); }} onMouseDown=${closeOutside}>
        <div class="dialog-box">
            <header><h2>${title}</h2><button class="bare" aria-label="Close" onClick=${onClose}><${Icon} name="close" /></button></header>
            <div class="dialog-body">${children}</div>
            ${footer && html`<footer>${footer}</footer>`}
        </div>
    </dialog>`;
}

const question = signal(/** @type {any} */ (null));

/**
 * Ask before something that cannot be taken back, or that has a price.
 * @param {{title: string, text: any, action: string, danger?: boolean, input?: {label: string, value: string}}} asked
 * @returns {Promise<string | boolean>} false when it was refused; with `input` what was typed, else true
 */
export function confirmed(asked) {
    return new Promise((resolve) => (question.value = { ...asked, resolve }));
}

/** Where `confirmed` shows its question; once in the page. */
export function Question() {
    const asked = question.value;
    const field = useRef(/** @type {HTMLInputElement | null} */ (null));
    if (!asked) return null;
    const answer = (value) => {
        question.value = null;
        asked.resolve(value);
    };
    const accept = (event) => {
        event.preventDefault();
        answer(asked.input ? (field.current?.value.trim() ?? '') : true);
    };
    return html`<${Dialog} title=${asked.title} onClose=${() => answer(false)}>
        <form onSubmit=${accept}>
            <p>${asked.text}</p>
            ${asked.input && html`<label class="field"><span>${asked.input.label}</span><input ref=${field} type="text" defaultValue=${asked.input.value} required /></label>`}
            <div class="buttons end">
                <button type="button" onClick=${() => answer(false)}>Cancel</button>
                <button type="submit" class=${asked.danger ? 'danger' : 'primary'}>${asked.action}</button>
            </div>
        </form>
    <//>`;
}
