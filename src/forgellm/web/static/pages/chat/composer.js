/** Where one writes: Enter sends, Shift+Enter is a new line, Escape stops the answer. */
import { html, useRef, useState } from '../../core/html.js';
import { count, percent } from '../../core/format.js';
import { Icon } from '../../components/icon.js';
import { pathOf } from './tree.js';

export function Composer({ session, canSend }) {
    const [text, setText] = useState('');
    const field = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
    const isAnswering = session.isAnswering;
    const send = () => {
        if (!text.trim() || isAnswering || !canSend) return;
        setText('');
        session.send(text);
        field.current?.focus();
    };
    const onKey = (event) => {
        if (event.key === 'Escape' && isAnswering) session.stop();
        if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        send();
    };
    return html`<div class="composer">
        <${ContextMeter} session=${session} />
        <div class="composer-box">
            <textarea ref=${field} aria-label="Your question" placeholder="Ask …" rows=${Math.min(8, Math.max(1, text.split('\n').length))} value=${text}
                onInput=${(event) => setText(event.target.value)} onKeyDown=${onKey}></textarea>
            ${isAnswering
                ? html`<button class="danger" onClick=${() => session.stop()}><${Icon} name="stop" size=${16} /> Stop</button>`
                : html`<button class="primary" disabled=${!text.trim() || !canSend} onClick=${send}><${Icon} name="send" size=${16} /> Send</button>`}
        </div>
    </div>`;
}

/** How much of the model's context the conversation fills, by the last answer's own count. */
function ContextMeter({ session }) {
    const last = pathOf(session.state.value).findLast((message) => message.figures?.context_length && message.figures.prompt_tokens !== null);
    if (!last) return null;
    const { prompt_tokens, tokens_generated, context_length } = last.figures;
    const used = prompt_tokens + tokens_generated;
    return html`<p class="context quiet small-text"><meter min="0" max=${context_length} high=${0.8 * context_length} value=${used} aria-label="Context used"></meter>
        ${count(used)} of ${count(context_length)} tokens of context (${percent(used / context_length)})</p>`;
}
