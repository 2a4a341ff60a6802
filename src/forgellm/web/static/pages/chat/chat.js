import { html } from '../../core/html.js';

export const title = 'Chat';

export function View() {
    return html`<div class="page"><div class="page-head"><h1>Chat</h1></div></div>`;
}
