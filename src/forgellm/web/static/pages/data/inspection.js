/** What is in a dataset: files, tokens, lengths, languages, what is skipped, what should not be there. */
import { html, useEffect } from '../../core/html.js';
import { api } from '../../core/api.js';
import { count, plural, short } from '../../core/format.js';
import { Notice } from '../../components/feedback.js';
import { JobProgress, useJob } from '../../components/job.js';
import { Table } from '../../components/table.js';

export function Inspection({ name }) {
    const { job, begin, clear } = useJob();
    const look = () => begin(() => api.inspectDataset(name, {}));
    useEffect(() => void look(), [name]);
    const found = job?.status === 'completed' ? job.result : null;
    return html`<div class="stack">
        <${JobProgress} job=${job} onClear=${() => { clear(); look(); }} />
        ${found && html`<${Report} found=${found} />`}
    </div>`;
}

function Report({ found }) {
    const title = { documents: 'Documents', conversations: 'Conversations', pairs: 'Pairs' }[found.kind];
    const noun = { documents: 'document', conversations: 'conversation', pairs: 'pair' }[found.kind];
    const findings = Object.entries(found.findings);
    const others = Object.entries(found.others ?? {});
    const notes = (found.in_a_run ?? found).notes ?? []; // older reports have none
    return html`
        <section class="card"><dl class="figures">
            ${[[title, count(found.items)], [found.tokens_are === 'counted' ? 'Tokens' : 'Tokens, roughly', short(found.tokens)],
                ['Files', count(found.files.length)], ['Exact duplicates', count(found.exact_duplicates)], ['Left out', count(found.num_skipped)]]
                .map(([label, value]) => html`<div key=${label}><dt class="name">${label}</dt><dd class="value">${value}</dd></div>`)}
        </dl></section>
        ${findings.length > 0 && html`<${Notice} tone="warn"><strong>Look before you train.</strong> <span>In the text: ${findings.map(([kind, number]) => `${kind.replaceAll('_', ' ')} (${count(number)})`).join(', ')}. A model can repeat them. “Clean it” can mask them.</span><//>`}
        ${found.in_a_run && html`<p class="quiet">In a run with ${count(found.in_a_run.max_seq_length)} tokens a row, ${plural(found.in_a_run.used, `${noun} is`, `${noun}s are`)} used, ${count(found.in_a_run.cut)} cut at a turn's end; ${short(found.in_a_run.learned_tokens)} of ${short(found.in_a_run.tokens)} tokens are learned.</p>`}
        ${others.length > 0 && html`<p class="quiet">Also in it, for other methods: ${others.map(([kind, number]) => `${count(number)} ${kind}`).join(', ')}.</p>`}
        <div class="grid halves">
            <section class="card"><h2>Lengths</h2><${Bars} rows=${found.lengths.map((bucket) => [`${count(bucket.at_least)} to ${count(bucket.at_most)} tokens`, bucket.items])} /></section>
            <section class="card"><h2>Languages</h2><${Bars} rows=${Object.entries(found.languages)} /></section>
        </div>
        ${found.skipped.length > 0 && html`<section class="card"><h2>Left out</h2><ul class="plain-list">${found.skipped.map((item, at) => html`<li key=${at}><span class="grow">${item.source}</span><span class="quiet">${item.reason}${item.rows ? ` (${plural(item.rows, 'row', 'rows')})` : ''}</span></li>`)}</ul></section>`}
        ${notes.length > 0 && html`<section class="card"><h2>Partly used</h2><ul class="plain-list">${notes.map((item, at) => html`<li key=${at}><span class="grow">${item.source}</span><span class="quiet">${item.reason} (${plural(item.rows, 'row', 'rows')})</span></li>`)}</ul></section>`}
        <div class="card flush"><${Table} caption="Files and what is in them" rows=${found.files} rowKey=${(file) => file.name} columns=${[
            { id: 'name', label: 'File', value: (file) => file.name },
            { id: 'language', label: 'Language', value: (file) => file.language },
            { id: 'items', label: title, align: 'end', value: (file) => file.items, show: (file) => count(file.items) },
            { id: 'characters', label: 'Characters', align: 'end', value: (file) => file.characters, show: (file) => count(file.characters) },
            { id: 'tokens', label: 'Tokens', align: 'end', value: (file) => file.tokens, show: (file) => count(file.tokens) },
        ]} /></div>`;
}

/** A histogram in words and bars. */
function Bars({ rows }) {
    const most = Math.max(1, ...rows.map(([, number]) => number));
    return html`<dl class="bars">${rows.map(([label, number]) => html`<dt>${label}</dt><dd><meter min="0" max=${most} value=${number} aria-label=${`${label}: ${number}`}></meter><span>${count(number)}</span></dd>`)}</dl>`;
}
