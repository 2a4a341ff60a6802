import { html } from '../../core/html.js';

export const title = 'Data';

export function View() {
    return html`<div class="page"><div class="page-head"><h1>Data</h1></div></div>`;
}
