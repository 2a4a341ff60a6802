/** What this browser remembers: only how things look, never what they are. */
import { effect, signal } from './html.js';

/** 'system' | 'light' | 'dark' */
export const theme = kept('theme', 'system');

/** A signal that is kept in this browser's storage under `name`. */
export function kept(name, otherwise) {
    const key = `forgellm.${name}`;
    const found = signal(readFrom(key, otherwise));
    effect(() => writeTo(key, found.value));
    return found;
}

function readFrom(key, otherwise) {
    try {
        return JSON.parse(localStorage.getItem(key) ?? '') ?? otherwise;
    } catch {
        return otherwise;
    }
}

function writeTo(key, value) {
    try {
        localStorage.setItem(key, JSON.stringify(value));
    } catch {
        // Storage can be full or switched off; then the page just does not remember.
    }
}

effect(() => {
    if (theme.value === 'system') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme.value;
});
