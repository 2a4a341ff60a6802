/** How loss curves are drawn: one choice, for a run and for several side by side. */
import { html } from '../../core/html.js';
import { kept } from '../../core/settings.js';
import { CheckField } from '../../components/field.js';

export const smoothing = kept('smoothing', 0.6);
export const isLog = kept('logLoss', false);

/** @param {{first?: any, children?: any}} props `first` stands before the choices, children behind them */
export function LossTools({ first, children }) {
    return html`<div class="row chart-tools">
        ${first}
        <label class="row">Smoothing <input type="range" min="0" max="0.98" step="0.02" value=${smoothing.value} onInput=${(event) => (smoothing.value = Number(event.target.value))} /></label>
        <${CheckField} label="Logarithmic loss" value=${isLog.value} onChange=${(value) => (isLog.value = value)} />
        <span class="grow"></span>
        ${children}
    </div>`;
}
