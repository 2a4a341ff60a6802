/** A question, and an answer to it: copy, edit, try again, step through the versions. */
import { html, useState } from '../../core/html.js';
import { figure } from '../../core/format.js';
import { CopyButton } from '../../components/controls.js';
import { Problem } from '../../components/feedback.js';
import { Icon } from '../../components/icon.js';
import { Markdown } from '../../components/markdown.js';
import { TokenView } from './token_view.js';
import { siblingsOf, splitThinking } from './tree.js';

export function Question({ session, message }) {
    const [draft, setDraft] = useState(/** @type {string | null} */ (null));
    const ask = (event) => {
        event.preventDefault();
        const text = draft ?? '';
        setDraft(null);
        if (text.trim()) session.edit(message, text);
    };
    if (draft !== null) {
        return html`<form class="question editing" onSubmit=${ask}>
            <textarea aria-label="Edit the question" rows="3" value=${draft} onInput=${(event) => setDraft(event.target.value)}></textarea>
            <div class="buttons end"><button type="button" class="small" onClick=${() => setDraft(null)}>Cancel</button><button class="small primary">Ask this</button></div>
        </form>`;
    }
    return html`<div class="question"><div class="said">${message.content}</div>
        <div class="message-tools">
            <${Versions} session=${session} message=${message} />
            <button class="bare" aria-label="Edit the question" disabled=${session.isAnswering} onClick=${() => setDraft(message.content)}><${Icon} name="edit" size=${15} /></button>
        </div></div>`;
}

export function Answer({ session, question, message, pane, isGrowing }) {
    const again = () => session.again(question, pane);
    if (!message) {
        return html`<div class="answer empty-answer">${session.isAnswering ? html`<span class="quiet">…</span>`
            : html`<button class="small" onClick=${again}><${Icon} name="again" size=${14} /> Let it answer</button>`}</div>`;
    }
    const { thinking, answer, isThinking } = splitThinking(message.content);
    const hasScores = message.scores?.length > 0;
    return html`<article class="answer" aria-busy=${isGrowing}>
        ${thinking && html`<details class="thinking" open=${isThinking && isGrowing}><summary>${isThinking && isGrowing ? 'Thinking …' : 'Thoughts'}</summary><${Markdown} text=${thinking} isComplete=${!isGrowing} /></details>`}
        ${hasScores && session.showsTokens.value && !isGrowing ? html`<${TokenView} scores=${message.scores} />`
            : answer ? html`<${Markdown} text=${answer} isComplete=${!isGrowing} />`
            : isGrowing && !thinking && html`<span class="spinner" role="status" aria-label="Waiting for the first token"></span>`}
        ${message.error && html`<${Problem} error=${message.error} onRetry=${again} />`}
        ${!isGrowing && html`<div class="message-tools">
            <${Versions} session=${session} message=${message} />
            <${CopyButton} text=${answer} />
            <button class="bare" aria-label="Answer again" title="Answer again" disabled=${session.isAnswering} onClick=${again}><${Icon} name="again" size=${15} /></button>
            <${Figures} figures=${message.figures} />
        </div>`}
    </article>`;
}

function Figures({ figures }) {
    if (!figures) return null;
    const ended = { length: 'cut at the limit', cancelled: 'stopped' }[figures.finish_reason];
    const speed = figures.tokens_per_second ? `${figures.tokens_generated} tokens at ${figure(figures.tokens_per_second, 1)} tok/s` : '';
    return html`<span class="quiet small-text">${[speed, ended].filter(Boolean).join(', ')}</span>`;
}

/** Where there are several versions of a message: which one this is, and the way to the others. */
function Versions({ session, message }) {
    const versions = siblingsOf(session.state.value, message);
    const at = versions.findIndex((item) => item.id === message.id);
    if (versions.length < 2) return null;
    const go = (step) => session.turnTo(versions[at + step]);
    const isPane = message.role === 'assistant' && (message.pane ?? 0) > 0;
    if (isPane) return html`<span class="quiet small-text">${versions.length} tries</span>`;
    return html`<span class="versions" role="group" aria-label="Versions">
        <button class="bare" aria-label="Earlier version" disabled=${at <= 0 || session.isAnswering} onClick=${() => go(-1)}><${Icon} name="left" size=${14} /></button>
        <span class="small-text">${at + 1} of ${versions.length}</span>
        <button class="bare" aria-label="Later version" disabled=${at >= versions.length - 1 || session.isAnswering} onClick=${() => go(1)}><${Icon} name="right" size=${14} /></button>
    </span>`;
}
