/** The frame around every view: where one can go, what runs, whether the server is there. */
import { html, useState } from '../core/html.js';
import { baseName, figure, minutes, PHASES, isActive } from '../core/format.js';
import { connection, currentRun, model } from '../core/live.js';
import { address, place } from '../core/router.js';
import { theme } from '../core/settings.js';
import { ProgressBar } from './controls.js';
import { Question } from './dialog.js';
import { Badge, Toasts } from './feedback.js';
import { Icon } from './icon.js';

const VIEWS = [
    ['', 'start', 'Start'],
    ['train', 'train', 'Train'],
    ['runs', 'runs', 'Runs'],
    ['compare', 'compare', 'Compare'],
    ['chat', 'chat', 'Chat'],
    ['models', 'models', 'Models'],
    ['data', 'data', 'Data'],
];

export function Shell({ children }) {
    const [isOpen, setOpen] = useState(false);
    const close = (event) => event.target.closest('a') && setOpen(false);
    return html`
        <a class="skip" href="#main">To the content</a>
        <div class="shell">
            <header class=${isOpen ? 'side open' : 'side'} onClick=${close}>
                <div class="side-head">
                    <a class="brand" href="/"><img src="/static/icon.svg" alt="" /> ForgeLLM</a>
                    <button class="bare menu-button" aria-expanded=${isOpen} aria-label="Menu" onClick=${() => setOpen(!isOpen)}><${Icon} name="menu" /></button>
                </div>
                <nav aria-label="Views"><ul>${VIEWS.map(([view, icon, label]) => html`<${Entry} key=${view} view=${view} icon=${icon} label=${label} />`)}</ul></nav>
                <div class="side-foot">
                    <${RunState} /><${ModelState} />
                    <div class="row"><${ThemeButton} /><a class="quiet" href="/docs">API</a></div>
                </div>
            </header>
            <div>
                ${connection.value === 'offline' && html`<div class="offline" role="alert"><span class="spinner" aria-hidden="true"></span> The server does not answer. Trying again; what is shown may be old.</div>`}
                <main id="main" tabindex="-1">${children}</main>
            </div>
        </div>
        <${Toasts} /><${Question} />
    `;
}

function Entry({ view, icon, label }) {
    const isHere = place.value.view === view;
    return html`<li><a href=${`/${view}`} aria-current=${isHere ? 'page' : undefined}><${Icon} name=${icon} /> ${label}</a></li>`;
}

/** The run that trains, or trained last, wherever one is. */
function RunState() {
    const run = currentRun.value;
    if (!run) return null;
    const [word, tone] = PHASES[run.phase] ?? [run.phase, 'quiet'];
    const isRunning = isActive(run.phase);
    return html`<a class="state" href=${address('runs', run.training_id)}>
        <span class="row"><span class="grow cut">${isRunning ? 'Run' : 'Last run'}</span> <${Badge} tone=${tone}>${word}<//></span>
        ${isRunning && run.max_iterations && html`<${ProgressBar} value=${run.iteration / run.max_iterations} label="Progress of the run" />`}
        ${isRunning && html`<span class="quiet small-text">loss ${figure(run.training_loss)}${run.eta_minutes ? `, ${minutes(run.eta_minutes)} left` : ''}</span>`}
    </a>`;
}

function ModelState() {
    const status = model.value;
    if (!status) return null;
    const word = !status.running ? 'off' : status.is_loading ? 'loading' : status.loaded ? 'ready' : status.error ? 'failed' : 'none loaded';
    const tone = status.loaded ? 'good' : status.is_loading ? 'busy' : status.error ? 'bad' : 'quiet';
    const name = status.adapter_path ? baseName(status.adapter_path) : baseName(status.model_name);
    return html`<a class="state" href="/models">
        <span class="row"><span class="grow cut">Model</span> <${Badge} tone=${tone}>${word}<//></span>
        ${status.model_name && html`<span class="quiet small-text cut" title=${name}>${name}</span>`}
    </a>`;
}

const THEMES = { system: ['screen', 'light', 'as the system has it'], light: ['sun', 'dark', 'light'], dark: ['moon', 'system', 'dark'] };

function ThemeButton() {
    const [icon, next, word] = THEMES[theme.value] ?? THEMES.system;
    return html`<button class="bare" aria-label=${`Colours: ${word}. Change`} title=${`Colours: ${word}`} onClick=${() => (theme.value = next)}><${Icon} name=${icon} /></button>`;
}
