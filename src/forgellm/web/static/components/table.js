/** Tables whose columns can be sorted. On a narrow screen they scroll sideways on their own. */
import { html, useState } from '../core/html.js';

/**
 * @typedef {{id: string, label: any, value: (row: any) => any, show?: (row: any) => any, align?: 'end'}} Column
 *     `value` sorts, `show` is what one sees; without it the value.
 * @param {{columns: Column[], rows: any[], rowKey: (row: any) => string, caption: string, sort?: {id: string, down: boolean}, rowClass?: (row: any) => string}} props
 */
export function Table({ columns, rows, rowKey, caption, sort: first, rowClass }) {
    const [sort, setSort] = useState(/** @type {any} */ (first ?? null));
    const column = columns.find((item) => item.id === sort?.id);
    const sorted = column ? [...rows].sort((a, b) => compared(column.value(a), column.value(b), sort.down)) : rows;
    const turn = (id) => setSort((before) => ({ id, down: before?.id === id ? !before.down : false }));
    return html`<div class="table-box" tabindex="0" role="region" aria-label=${caption}><table>
        <caption class="hidden">${caption}</caption>
        <thead><tr>${columns.map(
            (item) => html`<th key=${item.id} scope="col" class=${item.align ?? ''} aria-sort=${ariaSort(item, sort)}>
                ${item.label ? html`<button type="button" class="bare" onClick=${() => turn(item.id)}>${item.label}</button>` : html`<span class="hidden">${item.id}</span>`}
            </th>`,
        )}</tr></thead>
        <tbody>${sorted.map(
            (row) => html`<tr key=${rowKey(row)} class=${rowClass?.(row) ?? ''}>
                ${columns.map((item) => html`<td key=${item.id} class=${item.align ?? ''}>${(item.show ?? item.value)(row)}</td>`)}
            </tr>`,
        )}</tbody>
    </table></div>`;
}

function ariaSort(column, sort) {
    if (!column.label || column.id !== sort?.id) return undefined;
    return sort.down ? 'descending' : 'ascending';
}

/** Unknown values come last either way. */
function compared(a, b, down) {
    const missing = Number(a === null || a === undefined) - Number(b === null || b === undefined);
    if (missing || a === null || a === undefined) return missing;
    const order = typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), 'en', { numeric: true });
    return down ? -order : order;
}
