/** The page: the frame, and in it the view that the address names. A view is loaded when first seen. */
import { html, render, useEffect, useState } from './core/html.js';
import { place } from './core/router.js';
import { Loading, Problem } from './components/feedback.js';
import { Shell } from './components/shell.js';

const VIEWS = {
    '': () => import('./pages/start/start.js'),
    train: () => import('./pages/train/train.js'),
    runs: () => import('./pages/runs/runs.js'),
    compare: () => import('./pages/compare/compare.js'),
    chat: () => import('./pages/chat/chat.js'),
    models: () => import('./pages/models/models.js'),
    data: () => import('./pages/data/data.js'),
};
const loaded = new Map();

/** Each view's module exports `title`, and `View`, which is given the rest of the path and the query. */
function CurrentView() {
    const { view, name, query } = place.value;
    const [, setCount] = useState(0);
    const [error, setError] = useState(/** @type {any} */ (null));
    const module = loaded.get(view);
    useEffect(() => {
        if (module || !VIEWS[view]) return;
        setError(null);
        VIEWS[view]().then((found) => {
            loaded.set(view, found);
            setCount((before) => before + 1);
        }, setError);
    }, [view]);
    useEffect(() => {
        document.title = [module?.titleOf?.(name, query) ?? module?.title, 'ForgeLLM'].filter(Boolean).join(' · ');
    }, [module, name, query]);
    if (error) return html`<div class="page"><${Problem} error=${error} onRetry=${() => location.reload()} /></div>`;
    if (!module) return html`<div class="page"><${Loading} /></div>`;
    return html`<${module.View} name=${name} query=${query} />`;
}

const root = /** @type {HTMLElement} */ (document.getElementById('app'));
root.replaceChildren();
render(html`<${Shell}><${CurrentView} /><//>`, root);
