/** Exactly what the model sees: the documents, and the rows of tokens with what is learned of them. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { count, megabytes, plural } from '../../core/format.js';
import { useResource } from '../../core/resource.js';
import { Dialog } from '../../components/dialog.js';
import { Badge, Notice, Shown } from '../../components/feedback.js';
import { Table } from '../../components/table.js';

const BLOCKS = 4;
const NOUNS = { cpt: 'document', ift: 'conversation', dpo: 'pair', orpo: 'pair' };

/** @param {{name: string, recipe: Record<string, any>, onClose: () => void}} props */
export function PreviewDialog({ name, recipe, onClose }) {
    return html`<${Dialog} title=${`What the model sees of ${name}`} wide onClose=${onClose}><${Preview} name=${name} recipe=${recipe} /><//>`;
}

export function Preview({ name, recipe }) {
    const asked = {
        blocks: BLOCKS,
        training_type: recipe.training_type,
        model: recipe.model_name,
        max_seq_length: recipe.max_seq_length ? Math.min(recipe.max_seq_length, 2048) : 512,
        loss_on: recipe.loss_on,
    };
    const found = useResource(() => api.previewDataset(name, asked), [name, JSON.stringify(asked)]);
    return html`<${Shown} resource=${found} what="Reading and tokenising">${(preview) => html`<div class="stack">
        <p class="quiet">${plural(preview.document_count, NOUNS[recipe.training_type] ?? 'conversation')}, ${count(preview.token_count)} tokens by the tokenizer of ${preview.tokenizer}.
            ${preview.complete ? '' : ' Only the beginning of a large dataset was looked at.'}</p>
        <${Told} items=${preview.skipped} what=${plural(preview.skipped.length, 'item is', 'items are') + ' left out'} />
        <${Told} items=${preview.notes ?? []} what="Not all that the rows hold is used" />
        ${preview.blocks.map((block, at) => html`<${Block} key=${at} block=${block} number=${at + 1} seqLen=${preview.max_seq_length} />`)}
        <${Table} caption="Documents" rows=${preview.documents} rowKey=${(item) => item.source} columns=${[
            { id: 'source', label: 'Source', value: (item) => item.source },
            { id: 'split', label: 'Used for', value: (item) => item.split, show: (item) => html`<${Badge} tone=${item.split === 'train' ? 'good' : 'info'}>${{ train: 'training', validation: 'held out', both: 'both' }[item.split]}<//>` },
            { id: 'tokens', label: 'Tokens', align: 'end', value: (item) => item.tokens, show: (item) => count(item.tokens) },
            { id: 'size', label: 'Size', align: 'end', value: (item) => item.size_bytes, show: (item) => megabytes(item.size_bytes / 1e6) },
        ]} />
    </div>`}<//>`;
}

function Told({ items, what }) {
    if (!items.length) return null;
    return html`<${Notice} tone="warn"><details><summary>${what}</summary><ul>${items.map((text) => html`<li key=${text}>${text}</li>`)}</ul></details><//>`;
}

/**
 * One row of a batch. Tokens that are learned are marked; a press on one shows what it may attend to:
 * those before it in the same document, and nothing of its neighbours.
 */
function Block({ block, number, seqLen }) {
    const [chosen, setChosen] = useState(/** @type {number | null} */ (null));
    const numLearned = block.loss_mask.reduce((sum, mask) => sum + mask, 0);
    const numDocuments = new Set(block.segment_ids.filter((segment) => segment >= 0)).size;
    // The mask stands at the token before the one that is predicted.
    const isLearned = (at) => at > 0 && block.loss_mask[at - 1] === 1;
    const isSeen = (at) => chosen !== null && at <= chosen && block.segment_ids[at] === block.segment_ids[chosen];
    const press = (event) => {
        const at = event.target.dataset?.at;
        if (at !== undefined) setChosen(Number(at) === chosen ? null : Number(at));
    };
    return html`<section><h2 class="row-title">Row ${number} <span class="quiet small-text">${count(seqLen)} tokens of ${plural(numDocuments, 'document')}, ${count(numLearned)} learned</span></h2>
        <div class=${chosen === null ? 'tokens' : 'tokens attending'} tabindex="0" role="group" aria-label=${`Tokens of row ${number}`} onClick=${press}>
            ${block.tokens.map((text, at) => block.segment_ids[at] < 0 ? null : html`<span key=${at} data-at=${at} title=${`token ${block.token_ids[at]}, position ${at}`}
                class=${[isLearned(at) ? 'learned' : '', block.segment_ids[at] % 2 ? 'odd' : '', isSeen(at) ? 'seen' : '', at === chosen ? 'chosen' : ''].join(' ')}>${text}</span>`)}
        </div>
        <p class="quiet small-text">${chosen === null ? 'Marked tokens are learned. Press a token to see what it may attend to.' : `Token ${chosen} attends to the ${plural(block.tokens.filter((_, at) => isSeen(at)).length, 'bright token')}.`}</p>
    </section>`;
}
