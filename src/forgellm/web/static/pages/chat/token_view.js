/** An answer token by token: the brighter, the surer; what else was likely on hover, focus or press. */
import { html, useState } from '../../core/html.js';
import { percent } from '../../core/format.js';

const STEPS = 5;

export function TokenView({ scores }) {
    const [chosen, setChosen] = useState(/** @type {number | null} */ (null));
    const at = (event) => {
        const place = event.target.dataset?.at;
        if (place !== undefined) setChosen(Number(place));
    };
    const token = chosen === null ? null : scores[chosen];
    return html`<div class="token-view">
        <p class="token-text" onMouseOver=${at} onFocusIn=${at} onClick=${at}>${scores.map((score, place) => html`<span key=${place} data-at=${place} tabindex=${place === (chosen ?? 0) ? 0 : -1}
            class=${`sure-${sureness(score.log_prob)} ${place === chosen ? 'chosen' : ''}`}>${score.token}</span>`)}</p>
        <div class="alternatives" role="status">${token
            ? html`<b><code>${visible(token.token)}</code> ${percent(Math.exp(token.log_prob), 1)}</b>
                <ul>${token.top.map((item) => html`<li key=${item.token}><code>${visible(item.token)}</code><meter min="0" max="1" value=${Math.exp(item.log_prob)}></meter>${percent(Math.exp(item.log_prob), 1)}</li>`)}</ul>`
            : html`<span class="quiet">Point at a token to see what else was likely.</span>`}</div>
    </div>`;
}

/** 0 for a token that was hardly expected, to 4. */
function sureness(logProb) {
    return Math.min(STEPS - 1, Math.floor(Math.exp(logProb) * STEPS));
}

const visible = (text) => text.replaceAll('\n', '⏎').replaceAll(' ', '␣') || '∅';
