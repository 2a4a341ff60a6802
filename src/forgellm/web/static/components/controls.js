/** Small controls that several views have. */
import { html, useEffect, useRef, useState } from '../core/html.js';
import { toast } from './feedback.js';
import { Icon } from './icon.js';

/** Copies `text`, and says so where it was pressed. */
export function CopyButton({ text, label = 'Copy' }) {
    const [isDone, setDone] = useState(false);
    const copy = async () => {
        try {
            await navigator.clipboard.writeText(typeof text === 'function' ? text() : text);
            setDone(true);
            setTimeout(() => setDone(false), 1500);
        } catch {
            toast('The browser did not allow copying', { tone: 'bad', suggestion: 'Select the text and copy it by hand.' });
        }
    };
    return html`<button type="button" class="small" onClick=${copy}><${Icon} name=${isDone ? 'check' : 'copy'} size=${14} /> ${isDone ? 'Copied' : label}</button>`;
}

/** A button whose work takes a while: it cannot be pressed twice. `onPress` may return a promise. */
export function WorkButton({ onPress, children, disabled = false, ...more }) {
    const [isBusy, setBusy] = useState(false);
    const isMounted = useRef(true);
    useEffect(() => () => void (isMounted.current = false), []);
    const press = async () => {
        setBusy(true);
        try {
            await onPress();
        } finally {
            if (isMounted.current) setBusy(false);
        }
    };
    return html`<button type="button" ...${more} disabled=${disabled || isBusy} aria-busy=${isBusy} onClick=${press}>
        ${isBusy && html`<span class="spinner" aria-hidden="true"></span>`} ${children}
    </button>`;
}

/** @param {{value: number | null | undefined, label: string, tone?: string}} props `value` from 0 to 1; null while the end is unknown */
export function ProgressBar({ value, label, tone = '' }) {
    return html`<progress class=${tone} max="1" value=${value ?? undefined} aria-label=${label}></progress>`;
}

/** Views within a view. The tab in the address survives a reload; `onChange` sets it there. */
export function Tabs({ tabs, chosen, onChange, label }) {
    const onKey = (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const at = tabs.findIndex((tab) => tab.id === chosen);
        const next = tabs[(at + step + tabs.length) % tabs.length];
        onChange(next.id);
        requestAnimationFrame(() => document.getElementById(`tab-${next.id}`)?.focus());
    };
    return html`<div class="tabs" role="tablist" aria-label=${label} onKeyDown=${onKey}>
        ${tabs.map(
            (tab) => html`<button key=${tab.id} id=${`tab-${tab.id}`} role="tab" type="button" aria-selected=${tab.id === chosen}
                tabindex=${tab.id === chosen ? 0 : -1} onClick=${() => onChange(tab.id)}>${tab.label}</button>`,
        )}
    </div>`;
}

/** Let the browser save `content` as a file. */
export function saveFile(name, content, type = 'text/plain') {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
