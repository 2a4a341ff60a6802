/** Runs: the list of all, or one of them while it learns and after. */
import { html } from '../../core/html.js';
import { List } from './list.js';
import { Monitor } from './monitor.js';

export const title = 'Runs';
export const titleOf = (name) => name || title;

export function View({ name, query }) {
    return name ? html`<${Monitor} key=${name} name=${name} query=${query} />` : html`<${List} query=${query} />`;
}
