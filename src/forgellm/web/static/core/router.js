/** Every view has its own address. A link is a plain <a href>; this module keeps it in the page. */
import { signal } from './html.js';

/** Where we are: the path's parts and the query. Views read it and follow it. */
export const place = signal(read());

/** Go to an address of the page. `replace` keeps the step out of the history. */
export function navigate(address, { replace = false } = {}) {
    if (address === location.pathname + location.search) return;
    history[replace ? 'replaceState' : 'pushState'](null, '', address);
    const before = place.value;
    place.value = read();
    if (before.view !== place.value.view || before.name !== place.value.name) atTheTop();
}

/** Change values of the query, as filters and tabs do; null or '' removes one. */
export function setQuery(changes, { replace = true } = {}) {
    const query = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(changes)) {
        if (value === null || value === undefined || value === '') query.delete(name);
        else query.set(name, String(value));
    }
    const text = query.toString().replaceAll('%2C', ',').replaceAll('%2F', '/');
    navigate(location.pathname + (text ? `?${text}` : ''), { replace });
}

/** An address from parts that may hold any character. */
export function address(...parts) {
    return '/' + parts.map(encodeURIComponent).join('/');
}

function read() {
    const [view = '', ...rest] = location.pathname.split('/').filter(Boolean).map(decoded);
    return { view, name: rest.join('/'), query: Object.fromEntries(new URLSearchParams(location.search)) };
}

function decoded(part) {
    try {
        return decodeURIComponent(part);
    } catch {
        return part;
    }
}

/** A new view begins at its heading, for the eye, the keyboard and the screen reader. */
function atTheTop() {
    scrollTo(0, 0);
    requestAnimationFrame(() => document.querySelector('main')?.focus({ preventScroll: true }));
}

addEventListener('popstate', () => (place.value = read()));

addEventListener('click', (event) => {
    if (event.defaultPrevented || event.button !== 0) return;
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = /** @type {Element} */ (event.target).closest?.('a[href]');
    if (!(link instanceof HTMLAnchorElement) || link.origin !== location.origin) return;
    if (link.target || link.hasAttribute('download') || link.hash) return;
    if (/^\/(api|docs|static|openapi)/.test(link.pathname)) return;
    event.preventDefault();
    navigate(link.pathname + link.search);
});
