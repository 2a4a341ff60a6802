/** An answer as it is made, and the models that must be there for it. */
import { api, ForgeLLMError } from '../../core/api.js';

/**
 * Items of an answer: `{type: 'token', text, scores?}` and at the end `{type: 'done', ...figures}`.
 * Aborting `signal` stops the model. Throws ForgeLLMError.
 * @param {Record<string, any>} body as POST /api/model/generate takes it
 * @param {AbortSignal} signal
 */
export async function* answerItems(body, signal) {
    const response = await fetch('/api/model/generate', {
        method: 'POST',
        signal,
        headers: { 'Content-Type': 'application/json', Accept: 'application/x-ndjson' },
        body: JSON.stringify({ ...body, streaming: true }),
    });
    if (!response.ok) throw new ForgeLLMError(await response.json());
    for await (const line of lines(/** @type {ReadableStream} */ (response.body))) {
        const item = JSON.parse(line);
        if (item.type === 'error') throw new ForgeLLMError(item);
        yield item;
        if (item.type === 'done') return;
    }
    throw new ForgeLLMError({ error: 'The answer broke off', error_code: 'UNAVAILABLE', suggestion: 'Try again.' });
}

async function* lines(stream) {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
        const { done, value } = await reader.read();
        rest += value ?? '';
        const parts = rest.split('\n');
        rest = /** @type {string} */ (parts.pop());
        yield* parts.filter((part) => part.trim());
        if (done) return;
    }
}

const keyOf = (model) => `${model.model_name} ${model.adapter_path ?? ''}`;

/**
 * Begin to load what the panes need and is not there. What no pane needs makes room; answers wait
 * for a model that loads. Throws ForgeLLMError.
 */
export async function haveModels(panes) {
    const needed = new Map(panes.map((pane) => [keyOf(pane), pane]));
    const { models } = await api.modelStatus();
    const held = models.filter((item) => item.loaded || item.is_loading).map(keyOf);
    const isOnlyNeeded = held.every((key) => needed.has(key));
    let isFirst = !isOnlyNeeded;
    for (const [key, pane] of needed) {
        if (isOnlyNeeded && held.includes(key)) continue;
        await api.loadModel(pane.model_name, pane.adapter_path ?? undefined, { beside: !isFirst });
        isFirst = false;
    }
}
