/** One conversation: what has been said, what is being said, and what one may do about it. */
import { signal } from '../../core/html.js';
import { api, shown } from '../../core/api.js';
import { toastError } from '../../components/feedback.js';
import { answerItems, haveModels } from './stream.js';
import { historyOf, placeOfNext, turnedTo, withMessage } from './tree.js';

export const DEFAULTS = { temperature: 0.7, top_p: 0.9, max_tokens: 512, repetition_penalty: 1.1 };
const TOP_LOGPROBS = 5;
const TITLE_LENGTH = 60;

/**
 * Holds a conversation and keeps it on the server after each change. `state` is what is shown;
 * `live` are the answers that grow, by pane.
 */
export class Session {
    constructor(conversation) {
        this.state = signal(conversation);
        this.live = signal(/** @type {Map<number, any>} */ (new Map()));
        this.showsTokens = signal(false);
        this.aborts = new Map();
        this.saving = Promise.resolve();
        this.growing = new Map();
        this.frame = 0;
        /** Called with the id that a new conversation is given. */
        this.onCreated = (/** @type {string} */ id) => {};
    }

    get isAnswering() {
        return this.live.value.size > 0;
    }

    /** Ask all panes. */
    async send(text) {
        const { state } = this;
        const title = state.value.title || text.trim().slice(0, TITLE_LENGTH);
        const question = { ...newMessage('user', text), parent: placeOfNext(state.value) };
        state.value = { ...withMessage(state.value, question), title };
        await this.#answerAll(question);
    }

    /** Ask in other words: the former question and its answers stay, as another branch. */
    async edit(message, text) {
        const question = { ...newMessage('user', text), parent: message.parent };
        this.state.value = withMessage(this.state.value, question);
        await this.#answerAll(question);
    }

    /** Let a pane answer once more. */
    async again(question, pane) {
        await this.#begin(async () => this.#answer(question, pane));
    }

    turnTo(message) {
        this.set(turnedTo(this.state.value, message));
    }

    /** Change anything else: title, system prompt, settings, panes. */
    set(changes) {
        this.state.value = { ...this.state.value, ...changes };
        this.#save();
    }

    stop() {
        for (const abort of this.aborts.values()) abort.abort();
    }

    async #answerAll(question) {
        await this.#begin(() => Promise.all(this.state.value.panes.map((_, pane) => this.#answer(question, pane))));
    }

    async #begin(work) {
        this.#save();
        try {
            await haveModels(this.state.value.panes);
            await work();
        } catch (error) {
            toastError(error);
        }
        this.#save();
    }

    async #answer(question, pane) {
        const { state } = this;
        const { panes, settings, system } = state.value;
        const history = historyOf(state.value, panes.length, question.id, pane);
        const body = {
            ...DEFAULTS, ...settings, ...named(panes[pane]), prompt: question.content,
            history: system ? [{ role: 'system', content: system }, ...history] : history,
            ...(this.showsTokens.value ? { top_logprobs: TOP_LOGPROBS } : {}),
        };
        /** @type {any} */
        const answer = { ...newMessage('assistant', ''), ...named(panes[pane]), parent: question.id, pane, scores: [] };
        const abort = new AbortController();
        this.aborts.set(pane, abort);
        this.#grow(pane, answer);
        try {
            for await (const item of answerItems(body, abort.signal)) {
                if (item.type === 'done') answer.figures = figuresOf(item);
                else answer.content += item.text;
                if (item.scores) answer.scores.push(...item.scores);
                this.#grow(pane, answer);
            }
        } catch (error) {
            answer.figures = { finish_reason: 'cancelled' };
            if (!abort.signal.aborted) answer.error = shown(error);
        }
        this.#ended(pane);
        if (answer.content || answer.error) state.value = withMessage(state.value, answer);
    }

    /** Show what has come so far, at most once a frame. */
    #grow(pane, answer) {
        this.growing.set(pane, answer);
        if (!this.live.value.has(pane)) this.live.value = new Map([...this.live.value, [pane, { ...answer }]]);
        this.frame ||= requestAnimationFrame(() => {
            this.frame = 0;
            const live = new Map(this.live.value);
            for (const [at, grown] of this.growing) if (live.has(at)) live.set(at, { ...grown });
            this.live.value = live;
        });
    }

    #ended(pane) {
        this.growing.delete(pane);
        this.aborts.delete(pane);
        const live = new Map(this.live.value);
        live.delete(pane);
        this.live.value = live;
    }

    /** One request after the other, the last state wins. */
    #save() {
        this.saving = this.saving.then(() => this.#put()).catch(toastError);
    }

    async #put() {
        const { state } = this;
        if (!state.value.messages.length) return;
        const content = contentOf(state.value);
        if (!state.value.id) {
            const { id, revision } = await api.createConversation(content);
            state.value = { ...state.value, id, revision };
            this.onCreated(id);
            return;
        }
        const { revision } = await api.saveConversation(state.value.id, { ...content, revision: state.value.revision });
        state.value = { ...state.value, revision };
    }
}

export function newConversation(panes) {
    return { id: null, revision: 0, title: '', system: '', settings: {}, panes, messages: [], leaf: null };
}

const newMessage = (role, content) => ({ id: crypto.randomUUID(), role, content, created_at: new Date().toISOString() });

const named = (pane) => ({ model_name: pane.model_name, adapter_path: pane.adapter_path ?? null });

/** What is kept. Scores are for looking at now, and would be many times the text. */
function contentOf({ title, system, settings, panes, messages, leaf }) {
    const kept = messages.map(({ scores, error, ...message }) => message);
    return { title, system, settings: { ...DEFAULTS, ...settings }, panes, messages: kept, leaf };
}

function figuresOf({ tokens_generated, tokens_per_second, finish_reason, prompt_tokens, context_length }) {
    return { tokens_generated, tokens_per_second, finish_reason, prompt_tokens, context_length };
}

