/** What a completed job has made, in a sentence with the figures that matter. */
import { html } from '../core/html.js';
import { figure, gigabytes, megabytes, percent, plural } from '../core/format.js';

/** What each kind of job is called while it works, and when it is over. */
export const JOB_WORDS = {
    publish_checkpoint: 'Publishing',
    combine: 'Combining adapters',
    quantise: 'Quantising',
    export_model: 'Exporting',
    push: 'Pushing to the hub',
};

const SENTENCES = {
    publish_checkpoint: (made) => html`Published as <${Model} name=${made.model_name} />. ${agreement(made.verification)}`,
    combine: (made) => html`Combined to <${Model} name=${made.model_name} />: ${made.parts.map((part) => `${part.weight} of ${part.checkpoint}`).join(', ')}.`,
    quantise: (made) => html`Quantised to <${Model} name=${made.model_name} />: ${gigabytes(made.before.size_gb)} became ${gigabytes(made.after.size_gb)}. ${agreement(made.verification)} ${fromTo('Perplexity', made.before.perplexity, made.after.perplexity)} ${fromTo('Tokens per second', made.before.tokens_per_second, made.after.tokens_per_second)}`,
    export_model: (made) => html`Exported to <a href="/models?tab=exports">${made.path}</a>: ${made.file ? gigabytes(made.size_gb) : `the adapter of ${made.checkpoint}, ${megabytes(made.size_mb)}`}. ${agreement(made.verification)} ${fromTo('Perplexity', made.model_perplexity, made.perplexity)}`,
    push: (made) => (made.commit_url
        ? html`${plural(made.files.length, 'file')} pushed to <a href=${webAddress(made.commit_url)} target="_blank" rel="noreferrer">${made.repo_id}</a>, ${made.private ? 'private' : 'public'}.`
        : html`Nothing was sent. A push to ${made.repo_id} would send ${plural(made.files.length, 'file')}, ${gigabytes(sizeOf(made.files))}: ${made.files.map((file) => file.name).join(', ')}.`),
};

export function Made({ job }) {
    return html`<span>${SENTENCES[job.kind](job.result)}</span>`;
}

function Model({ name }) {
    return html`<a href=${`/chat?model=${encodeURIComponent(name)}`} title="Chat with it">${name}</a>`;
}

function agreement(found) {
    if (found?.top1_agreement === undefined) return '';
    return `Compared on ${found.positions} positions, it agrees on ${percent(found.top1_agreement, 1)}.`;
}

function fromTo(what, before, after) {
    return Number.isFinite(before) && Number.isFinite(after) ? `${what}: ${figure(before, 2)} before, ${figure(after, 2)} after.` : '';
}

/** The hub says where the commit is; a link of another kind is not followed. */
const webAddress = (text) => (/^https?:\/\//.test(text) ? text : undefined);

const sizeOf = (files) => files.reduce((sum, file) => sum + file.size_bytes, 0) / 1e9;
