/** A cleaned copy of a dataset: what is left out is listed, and can be brought back. The original stays. */
import { html, useState } from '../../core/html.js';
import { api, ForgeLLMError } from '../../core/api.js';
import { count, plural } from '../../core/format.js';
import { useResource } from '../../core/resource.js';
import { address } from '../../core/router.js';
import { WorkButton } from '../../components/controls.js';
import { Badge, Notice, Shown, toast } from '../../components/feedback.js';
import { CheckField, NumberField } from '../../components/field.js';
import { isUnfinished, JobProgress, useJob } from '../../components/job.js';
import { Table } from '../../components/table.js';

const PAGE = 100;
const KINDS = { duplicate: 'the same', near_duplicate: 'nearly the same', boilerplate: 'repeats at edges', masked: 'masked', empty: 'nothing left' };

export function Preparation({ name }) {
    const [count, setCount] = useState(0);
    const made = useResource(() => preparationOf(name), [name, count]);
    return html`<${Shown} resource=${made} what="Looking for a preparation">${(found) => found.of === name
        ? html`<${Made} found=${found} onChange=${() => setCount(count + 1)} />`
        : html`<${Settings} name=${name} former=${found.former} onDone=${() => setCount(count + 1)} />`}<//>`;
}

/** The preparation that a dataset is, or the one that was made of it, if any. */
async function preparationOf(name) {
    const ask = (dataset) => api.preparation(dataset, { limit: PAGE }).catch((error) => {
        if (error instanceof ForgeLLMError) return null;
        throw error;
    });
    const own = await ask(name);
    if (own) return { of: name, ...own };
    return { of: null, former: await ask(`${name}-prepared`) };
}

function Settings({ name, former, onDone }) {
    const [settings, setSettings] = useState({ duplicates: true, similarity: 0.8, boilerplate: true, mask: /** @type {string[]} */ ([]) });
    const { job, begin, clear } = useJob(() => { toast('The cleaned copy is there', { link: { href: address('data', `${name}-prepared`), text: 'See it' } }); onDone(); });
    const change = (values) => setSettings({ ...settings, ...values });
    const mask = (kind, on) => change({ mask: on ? [...settings.mask, kind] : settings.mask.filter((item) => item !== kind) });
    return html`<section class="card stack">
        <p>A cleaned copy is made beside it, as <code>${name}-prepared</code>. The dataset itself is not touched, and all that is left out is listed and can be brought back.</p>
        ${former && html`<${Notice}>There is one already: <a href=${`${address('data', former.name)}?tab=prepare`}>${former.name}</a>, with ${plural(former.num_removals, 'removal')}. Making it again replaces it.<//>`}
        <div class="grid fields">
            <${CheckField} label="Leave out duplicates" hint="Texts that are the same, or nearly." value=${settings.duplicates} onChange=${(duplicates) => change({ duplicates })} />
            ${settings.duplicates && html`<${NumberField} label="From which likeness on" hint="1 finds only the same; 0.8 is usual." min="0.5" max="1" step="0.05" value=${settings.similarity} onChange=${(value) => change({ similarity: value ?? 0.8 })} />`}
            <${CheckField} label="Leave out lines that repeat" hint="Headers, footers and page numbers." value=${settings.boilerplate} onChange=${(boilerplate) => change({ boilerplate })} />
            <${CheckField} label="Mask likely secrets" hint="Keys, tokens and passwords." value=${settings.mask.includes('secrets')} onChange=${(on) => mask('secrets', on)} />
            <${CheckField} label="Mask e-mail addresses" value=${settings.mask.includes('emails')} onChange=${(on) => mask('emails', on)} />
        </div>
        <${JobProgress} job=${job} onClear=${clear} />
        <div class="buttons"><${WorkButton} class="primary" disabled=${isUnfinished(job)} onPress=${() => begin(() => api.prepareDataset(name, settings))}>Make the cleaned copy<//></div>
    </section>`;
}

function Made({ found, onChange }) {
    const { job, begin, clear } = useJob(onChange);
    const bringBack = (request) => begin(() => api.restoreDataset(found.name, request));
    return html`<div class="stack">
        <section class="card stack"><p>Made of <a href=${address('data', found.dataset)}>${found.dataset}</a>: ${count(found.num_written)} of ${plural(found.num_read, found.kind === 'documents' ? 'document' : 'conversation')} kept, ${plural(found.num_removals, 'removal')}${found.restored.length ? `, ${count(found.restored.length)} brought back` : ''}.</p>
            <${JobProgress} job=${job} onClear=${clear} />
            ${found.num_removals > 0 && html`<div class="buttons"><${WorkButton} disabled=${isUnfinished(job)} onPress=${() => bringBack({ everything: true })}>Bring everything back<//></div>`}</section>
        ${found.removals.length > 0 && html`<div class="card flush"><${Table} caption="What was left out" rows=${found.removals} rowKey=${(item) => item.id} columns=${[
            { id: 'kind', label: 'Why', value: (item) => item.kind, show: (item) => html`<${Badge}>${KINDS[item.kind] ?? item.kind}<//>` },
            { id: 'source', label: 'Where', value: (item) => item.source, show: (item) => html`${item.source}${item.lines.length ? html`<br /><span class="quiet small-text">line ${item.lines.slice(0, 5).join(', ')}</span>` : ''}` },
            { id: 'text', label: 'Text', value: (item) => item.text, show: (item) => html`<span class="clamp">${item.text}</span>${item.duplicate_of && html`<span class="quiet small-text">as ${item.duplicate_of}</span>`}` },
            { id: 'undo', label: '', align: 'end', value: () => null, show: (item) => html`<${WorkButton} class="small" disabled=${isUnfinished(job)} onPress=${() => bringBack({ removals: [item.id] })}>Bring back<//>` },
        ]} /></div>`}
        ${found.num_removals > PAGE && html`<p class="quiet">The first ${PAGE} of ${count(found.num_removals)}. The rest is in the folder's <code>preparation.json</code>.</p>`}
    </div>`;
}
