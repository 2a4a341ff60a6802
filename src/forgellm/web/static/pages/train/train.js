import { html } from '../../core/html.js';

export const title = 'Train';

export function View() {
    return html`<div class="page"><div class="page-head"><h1>Train</h1></div></div>`;
}
