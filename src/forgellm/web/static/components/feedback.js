/** What a view says of itself: it is loading, there is nothing, something went wrong, it is done. */
import { html, signal } from '../core/html.js';
import { shown } from '../core/api.js';
import { Icon } from './icon.js';

export function Loading({ what = 'Loading' }) {
    return html`<p class="loading" role="status"><span class="spinner" aria-hidden="true"></span>${what} …</p>`;
}

/** Where there is nothing yet: say so, and how to change that. */
export function Empty({ title, children }) {
    return html`<div class="empty"><h2>${title}</h2>${children}</div>`;
}

/**
 * A failure: what was wrong, where we looked, what to do.
 * @param {{error: any, onRetry?: () => void, title?: string}} props `error` as it was thrown
 */
export function Problem({ error, onRetry, title }) {
    const { message, suggestion, details } = shown(error);
    const problems = details?.problems ?? [];
    return html`<div class="notice bad" role="alert">
        <${Icon} name="warn" />
        <div>
            ${title && html`<strong>${title}</strong>`}
            <p>${message}</p>
            ${problems.length > 0 && html`<ul>${problems.map((p) => html`<li><code>${p.field}</code>: ${p.message}</li>`)}</ul>`}
            ${suggestion && html`<p class="quiet">${suggestion}</p>`}
            ${onRetry && html`<button class="small" onClick=${onRetry}>Try again</button>`}
        </div>
    </div>`;
}

/** @param {{tone?: 'info' | 'warn' | 'good' | 'bad', children: any}} props */
export function Notice({ tone = 'info', children }) {
    const icon = { info: 'info', warn: 'warn', good: 'check', bad: 'warn' }[tone];
    return html`<div class=${`notice ${tone}`}><${Icon} name=${icon} /><div>${children}</div></div>`;
}

/** What a resource has, or that it is not there. `children` is called with the data. */
export function Shown({ resource, what, children }) {
    if (resource.data !== undefined) return children(resource.data);
    if (resource.error) return html`<${Problem} error=${resource.error} onRetry=${resource.reload} />`;
    return html`<${Loading} what=${what} />`;
}

export function Badge({ tone = 'quiet', children }) {
    return html`<span class=${`badge ${tone}`}>${children}</span>`;
}

// --- toasts: short news that need no answer ------------------------------------------------------

const toasts = signal(/** @type {any[]} */ ([]));
let number = 0;

/**
 * Say something in the corner. Failures stay until they are closed.
 * @param {string} text
 * @param {{tone?: 'good' | 'bad' | 'info', link?: {href: string, text: string}, suggestion?: string}} options
 */
export function toast(text, { tone = 'good', link, suggestion } = {}) {
    const id = ++number;
    toasts.value = [...toasts.value.slice(-3), { id, text, tone, link, suggestion }];
    if (tone !== 'bad') setTimeout(() => dismiss(id), 6000);
}

/** Show what was thrown. */
export function toastError(error) {
    const { message, suggestion } = shown(error);
    toast(message, { tone: 'bad', suggestion });
}

function dismiss(id) {
    toasts.value = toasts.value.filter((item) => item.id !== id);
}

export function Toasts() {
    return html`<div class="toasts" role="status" aria-live="polite">
        ${toasts.value.map(
            (item) => html`<div key=${item.id} class=${`toast ${item.tone}`}>
                <div>
                    <p>${item.text} ${item.link && html`<a href=${item.link.href}>${item.link.text}</a>`}</p>
                    ${item.suggestion && html`<p class="quiet">${item.suggestion}</p>`}
                </div>
                <button class="bare" aria-label="Close" onClick=${() => dismiss(item.id)}><${Icon} name="close" size=${16} /></button>
            </div>`,
        )}
    </div>`;
}
