import { html } from '../../core/html.js';

export const title = 'Runs';

export function View() {
    return html`<div class="page"><div class="page-head"><h1>Runs</h1></div></div>`;
}
