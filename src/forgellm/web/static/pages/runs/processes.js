/** Several processes that train one run: what each of them takes and does. */
import { html } from '../../core/html.js';
import { figure, gigabytes } from '../../core/format.js';
import { Table } from '../../components/table.js';

const COLUMNS = [
    { id: 'rank', label: 'Process', value: (item) => item.rank },
    { id: 'host', label: 'Host', value: (item) => item.host },
    { id: 'memory', label: 'Memory', align: 'end', value: (item) => item.memory_usage_gb, show: (item) => gigabytes(item.memory_usage_gb) },
    { id: 'speed', label: 'Tokens/s', align: 'end', value: (item) => item.tokens_per_second, show: (item) => figure(item.tokens_per_second, 0) },
];

/** Nothing for a run of one process: its own figures say it. */
export function Processes({ processes }) {
    if (!processes.length) return null;
    return html`<div class="card flush processes">
        <${Table} caption="Processes that train together" rows=${processes} rowKey=${(item) => item.rank} columns=${COLUMNS} />
    </div>`;
}
