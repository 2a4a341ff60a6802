import { html } from '../../core/html.js';

export const title = 'Compare';

export function View() {
    return html`<div class="page"><div class="page-head"><h1>Compare</h1></div></div>`;
}
