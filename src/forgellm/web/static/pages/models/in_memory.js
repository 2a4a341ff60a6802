/** What the model server holds now, and the way into and out of its memory. */
import { html } from '../../core/html.js';
import { api } from '../../core/api.js';
import { baseName, gigabytes } from '../../core/format.js';
import { model } from '../../core/live.js';
import { WorkButton } from '../../components/controls.js';
import { Badge, Notice, Problem, toastError } from '../../components/feedback.js';
import { keyOf, labelOf } from '../chat/choices.js';

const heldOf = (pane) => model.value?.models?.find((item) => keyOf(item) === keyOf(pane));

export function LoadButton({ pane }) {
    const held = heldOf(pane);
    if (held?.is_loading) return html`<button class="small" disabled><span class="spinner" aria-hidden="true"></span> Loading</button>`;
    if (held?.loaded) return html`<${WorkButton} class="small" onPress=${() => unload(pane)}>Unload<//>`;
    return html`<${WorkButton} class="small" onPress=${() => api.loadModel(pane.model_name, pane.adapter_path ?? undefined, { beside: true }).catch(toastError)}>Load<//>`;
}

const unload = (pane) => api.unloadModel(pane.model_name, pane.adapter_path ?? undefined).catch(toastError);

export function InMemory() {
    const status = model.value;
    if (status && !status.running) {
        return html`<${Notice} tone="warn"><strong>The model server does not run.</strong><span>Training goes on without it; to chat, start everything with <code>forgellm start</code>.</span><//>`;
    }
    if (!status?.models?.length) return null;
    return html`<section class="card"><h2>In memory</h2><ul class="plain-list">${status.models.map((item) => html`<li key=${keyOf(item)}>
        <span class="grow"><span class="block cut">${labelOf(item)}</span>
            ${item.error ? html`<${Problem} error=${item.error} />` : html`<span class="quiet small-text">${[item.adapter_path && baseName(item.model_name), item.iteration && `iteration ${item.iteration}`, item.context_length && `${item.context_length} tokens of context`].filter(Boolean).join(', ')}</span>`}</span>
        ${item.is_loading ? html`<${Badge} tone="busy">loading<//>` : item.loaded && html`<span class="quiet">${gigabytes(item.memory_usage_gb)}</span>`}
        <${WorkButton} class="small" onPress=${() => unload(item)}>Unload<//>
    </li>`)}</ul></section>`;
}
