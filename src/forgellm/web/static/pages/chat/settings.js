/** How answers are made: the system prompt, how tokens are chosen, presets. */
import { html } from '../../core/html.js';
import { Icon } from '../../components/icon.js';
import { CheckField, Field, NumberField } from '../../components/field.js';
import { DEFAULTS } from './session.js';

const PRESETS = {
    Likeliest: { temperature: 0, top_p: 1, repetition_penalty: 1 },
    Careful: { temperature: 0.3, top_p: 0.9, repetition_penalty: 1.05 },
    Balanced: { temperature: 0.7, top_p: 0.9, repetition_penalty: 1.1 },
    Free: { temperature: 1.1, top_p: 0.95, repetition_penalty: 1.1 },
};

const FIELDS = [
    ['temperature', 'Temperature', 'How freely it chooses; 0 always takes the likeliest token.', 0, 10, 0.1],
    ['top_p', 'Top p', 'Chooses among the likeliest tokens that together have this probability.', 0.01, 1, 0.05],
    ['max_tokens', 'Longest answer', 'In tokens.', 1, 1_000_000, 1],
    ['repetition_penalty', 'Repetition penalty', 'Above 1 it repeats itself less.', 0.01, 10, 0.05],
    ['seed', 'Seed', 'The same seed gives the same answer; empty is chance.', 0, 2 ** 31 - 1, 1],
];

export function Settings({ session, onClose }) {
    const { settings, system } = session.state.value;
    const change = (values) => {
        const merged = { ...settings, ...values };
        session.set({ settings: Object.fromEntries(Object.entries(merged).filter(([, value]) => value !== null)) });
    };
    const isPreset = (preset) => Object.entries(preset).every(([name, value]) => (settings[name] ?? DEFAULTS[name]) === value);
    return html`<aside class="chat-settings" aria-label="Settings">
        <div class="card-head"><h2>Settings</h2><button class="bare" aria-label="Close settings" onClick=${onClose}><${Icon} name="close" /></button></div>
        <div class="buttons" role="group" aria-label="Presets">${Object.entries(PRESETS).map(([name, preset]) => html`<button key=${name} class=${isPreset(preset) ? 'small on' : 'small'} aria-pressed=${isPreset(preset)} onClick=${() => change(preset)}>${name}</button>`)}</div>
        <${Field} label="System prompt" hint="Said to the model before everything else.">${(attributes) => html`<textarea rows="4" ...${attributes} value=${system ?? ''} onChange=${(event) => session.set({ system: event.target.value })}></textarea>`}<//>
        ${FIELDS.map(([name, label, hint, min, max, step]) => html`<${NumberField} key=${name} label=${label} hint=${hint} min=${min} max=${max} step=${step} value=${settings[name] ?? null}
            placeholder=${String(DEFAULTS[name] ?? 'chance')} onChange=${(value) => change({ [name]: value })} />`)}
        <${CheckField} label="Show how sure it is" hint="Of the next answers: the probability of each token, and what else was likely." value=${session.showsTokens.value} onChange=${(on) => (session.showsTokens.value = on)} />
    </aside>`;
}
