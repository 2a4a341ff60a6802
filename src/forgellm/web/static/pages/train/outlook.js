/** What the recipe would take on this machine, and what stands in its way, before the button is pressed. */
import { html, useMemo } from '../../core/html.js';
import { count, figure, gigabytes, isActive, minutes, rate, short } from '../../core/format.js';
import { currentRun } from '../../core/live.js';
import { address } from '../../core/router.js';
import { Chart } from '../../components/chart.js';
import { WorkButton } from '../../components/controls.js';
import { Loading, Notice, Problem } from '../../components/feedback.js';

const USUAL_PASSES = 3;
const MANY_PASSES = 12;

export function Outlook({ recipe, datasets, outlook, change, onStart }) {
    const found = outlook.data;
    const isRunning = currentRun.value !== null && isActive(currentRun.value.phase);
    const isReady = Boolean(found?.fits) && !outlook.error;
    return html`<section class="card stack">
        <h2>What it takes</h2>
        ${!recipe.dataset || !(recipe.model_name || recipe.base_run) ? html`<p class="quiet">Choose a model and data first.</p>`
            : outlook.error ? html`<${Problem} error=${outlook.error} />`
            : found ? html`<${Figures} found=${found} recipe=${recipe} datasets=${datasets} change=${change} />`
            : html`<${Loading} what="Working it out" />`}
        <div class="buttons">
            ${isRunning
                ? html`<${WorkButton} class="primary" disabled=${!isReady} onPress=${() => onStart(recipe, true)}>Queue it<//>
                    <a class="button" href=${address('runs', currentRun.value.training_id)}>See the run that trains</a>`
                : html`<${WorkButton} class="primary grow" disabled=${!isReady} onPress=${() => onStart(recipe, false)}>Start training<//>`}
        </div>
    </section>`;
}

function Figures({ found, recipe, datasets, change }) {
    const { memory, disk, time, problem } = found;
    const epochs = epochsOf(recipe, datasets, found.total_tokens);
    return html`
        <${MemoryBar} memory=${memory} />
        <dl class="facts">
            <dt>Time</dt><dd>${time.minutes === null ? html`<span class="quiet">known after the first steps</span>` : html`about ${minutes(time.minutes)} <span class="quiet">at ${figure(time.tokens_per_second, 0)} tok/s, as in an earlier run</span>`}</dd>
            <dt>Tokens</dt><dd>${short(found.total_tokens)} <span class="quiet">in rows of ${count(found.max_seq_length)}</span></dd>
            ${epochs !== null && html`<dt>Passes over the data</dt><dd>about ${figure(epochs, 1)}</dd>`}
            <dt>Disk</dt><dd>${gigabytes(disk.needed_gb)} <span class="quiet">of ${gigabytes(disk.free_gb)} free</span></dd>
        </dl>
        ${epochs !== null && epochs > MANY_PASSES && html`<${ManyPasses} epochs=${epochs} recipe=${recipe} change=${change} />`}
        ${problem && html`<${Unfit} problem=${problem} change=${change} />`}
        ${found.warnings.map((text) => html`<${Notice} key=${text} tone="warn">${text}<//>`)}
        <${RateCurve} points=${found.learning_rates} />`;
}

function ManyPasses({ epochs, recipe, change }) {
    const iterations = Math.max(1, Math.round(((recipe.max_iterations ?? 500) * USUAL_PASSES) / epochs));
    const every = Math.max(1, Math.ceil(iterations / 4));
    return html`<${Notice} tone="warn"><span>The model would read this data ${count(epochs)} times, and learn it by heart rather than from it. ${USUAL_PASSES} passes are ${count(iterations)} iterations.</span>
        <button type="button" class="small" onClick=${() => change({ max_iterations: iterations, save_every: every })}>Use ${count(iterations)} iterations</button><//>`;
}

function Unfit({ problem, change }) {
    const fitting = problem.details?.fitting;
    return html`<${Notice} tone="bad"><strong>${problem.error}</strong><span>${problem.suggestion}</span>
        ${fitting && html`<button type="button" class="small" onClick=${() => change(fitting)}>Use these values</button>`}<//>`;
}

function MemoryBar({ memory }) {
    const most = Math.max(memory.available_gb, memory.total_gb);
    const parts = [['weights', memory.weights_gb, 2], ['optimiser', memory.optimizer_gb, 4], ['activations', memory.activations_gb, 5], ['program', memory.process_gb, 8]];
    const isTight = memory.total_gb > memory.available_gb;
    return html`<div class="memory">
        <p class="row"><span class="grow">Memory at its peak</span><b class=${isTight ? 'over' : ''}>${gigabytes(memory.total_gb)}</b><span class="quiet">of ${gigabytes(memory.available_gb)} free</span></p>
        <div class="memory-bar" role="img" aria-label=${`About ${gigabytes(memory.total_gb)} of ${gigabytes(memory.available_gb)} free memory`}>
            ${parts.map(([name, size, color]) => html`<span key=${name} class=${`fill-${color}`} style=${{ width: `${(100 * size) / most}%` }}></span>`)}</div>
        <ul class="legend">${parts.map(([name, size, color]) => html`<li key=${name}><span class=${`swatch color-${color}`}></span>${name} <b>${gigabytes(size)}</b></li>`)}</ul>
    </div>`;
}

function RateCurve({ points }) {
    const [x, values] = useMemo(() => [points.map((point) => point[0]), points.map((point) => point[1])], [points]);
    const series = useMemo(() => [{ label: 'at the end', values, color: 3 }], [values]);
    if (points.length < 2) return null;
    return html`<${Chart} title="Learning rate" x=${x} height=${120} format=${rate} series=${series} />`;
}

/** Passes over the dataset, from its estimated tokens and its share of the rows. */
function epochsOf(recipe, datasets, totalTokens) {
    const tokens = datasets?.find((item) => item.name === recipe.dataset)?.estimated_tokens;
    if (!tokens) return null;
    const trained = tokens * (1 - (recipe.validation_split ?? 0.1));
    return (totalTokens * (recipe.data_mixture_ratio ?? 0.95)) / trained;
}
