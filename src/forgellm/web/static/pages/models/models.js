import { html } from '../../core/html.js';

export const title = 'Models';

export function View() {
    return html`<div class="page"><div class="page-head"><h1>Models</h1></div></div>`;
}
