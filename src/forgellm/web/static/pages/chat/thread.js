/** The exchanges so far, pane beside pane, and the answers that grow. */
import { html, useEffect, useRef } from '../../core/html.js';
import { Answer, Question } from './message.js';
import { columnsOf } from './pane_heads.js';
import { exchangesOf } from './tree.js';

const NEAR_THE_END = 160;

export function Thread({ session }) {
    const conversation = session.state.value;
    const live = session.live.value;
    const { panes } = conversation;
    const box = useRef(/** @type {HTMLElement | null} */ (null));
    const isAtEnd = useRef(true);
    const note = () => {
        const element = /** @type {HTMLElement} */ (box.current);
        isAtEnd.current = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_THE_END;
    };
    useEffect(() => {
        // Who scrolls up to read is not pulled down again.
        if (isAtEnd.current && box.current) box.current.scrollTop = box.current.scrollHeight;
    }, [conversation, live]);
    const exchanges = exchangesOf(conversation, panes.length);
    return html`<div class="thread" ref=${box} onScroll=${note} tabindex="0" role="log" aria-label="Messages" aria-live=${session.isAnswering ? 'off' : 'polite'}>
        ${!exchanges.length && html`<p class="hello quiet">${panes.length > 1 ? 'One question, and each model answers in its own pane.' : 'Ask something that your documents know.'}</p>`}
        ${exchanges.map(({ question, answers }) => html`<div class="exchange" key=${question.id}>
            <${Question} session=${session} message=${question} />
            <div class="panes" style=${columnsOf(panes)}>${panes.map((_, pane) => {
                const growing = live.get(pane);
                const isGrowing = growing?.parent === question.id;
                return html`<${Answer} key=${pane} session=${session} question=${question} pane=${pane} message=${isGrowing ? growing : answers[pane]} isGrowing=${isGrowing} />`;
            })}</div>
        </div>`)}
    </div>`;
}
