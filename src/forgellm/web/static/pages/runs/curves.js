/** The charts of a run. One slider smooths, one switch turns the loss axis logarithmic, all zoom together. */
import { html, useMemo } from '../../core/html.js';
import { figure, gigabytes, percent, rate, short } from '../../core/format.js';
import { Chart } from '../../components/chart.js';
import { saveFile } from '../../components/controls.js';
import { Empty } from '../../components/feedback.js';
import { smoothed } from './curve.js';
import { isLog, LossTools, smoothing } from './loss_tools.js';

const GROUP = 'run';

export function Curves({ curve, best, evaluations, isActive }) {
    const weight = smoothing.value;
    const training = useMemo(() => smoothed(curve.training_loss, weight), [curve, weight]);
    if (curve.x.length === 0) {
        return html`<${Empty} title=${isActive ? 'The first figures come in a moment' : 'This run has no figures'}>
            <p>${isActive ? 'The documents are read and one step is tried before training begins.' : 'It ended before its first update.'}</p><//>`;
    }
    const marks = best === null || best === undefined ? [] : [{ x: best, label: 'best' }];
    const x = curve.x;
    const loss = [
        ...(weight ? [{ label: 'training, as measured', values: curve.training_loss, color: 1, faint: true }] : []),
        { label: 'training', values: training, color: 1 },
        { label: 'validation', values: curve.validation_loss, color: 2, sparse: true, points: true },
    ];
    return html`<div class="stack">
        <${LossTools}><button class="small" onClick=${() => saveFile('curve.csv', csvOf(curve), 'text/csv')}>Save as CSV</button><//>
        <section class="card"><${Chart} title="Loss" x=${x} series=${loss} isLog=${isLog.value} group=${GROUP} height=${300} marks=${marks} /></section>
        <${Learning} evaluations=${evaluations} />
        <div class="grid halves">
            ${plot('Perplexity, held-out', x, 'validation', curve.validation_loss.map((v) => (v === null ? null : Math.exp(v))), { color: 2, sparse: true, points: true, format: (v) => figure(v, 2) })}
            ${plot('Generalisation gap', x, 'validation − training', gaps(curve), { color: 7, sparse: true, points: true })}
            ${plot('Learning rate', x, 'rate', curve.learning_rate, { color: 3, format: rate })}
            ${plot('Gradient norm', x, 'norm', curve.grad_norm, { color: 4 })}
            ${plot('Tokens per second', x, 'tok/s', curve.tokens_per_second, { color: 6, format: (v) => short(v) })}
            ${plot('Memory', x, 'peak', curve.memory_usage_gb, { color: 5, format: gigabytes })}
        </div>
    </div>`;
}

function plot(title, x, label, values, { format = figure, ...look }) {
    if (values.every((value) => value === null)) return null;
    return html`<section class="card" key=${title}><${Chart} title=${title} x=${x} series=${[{ label, values, ...look }]} group=${GROUP} height=${190} format=${format} /></section>`;
}

/** What the model learns of the probes, and forgets of general text, with intervals. */
function Learning({ evaluations }) {
    if (!evaluations.length) return null;
    const x = evaluations.map((line) => line.iteration);
    const files = (kind) => evaluations[0][kind].map((item) => item.file);
    const of = (kind, file, name) => evaluations.map((line) => line[kind].find((item) => item.file === file)?.[name] ?? null);
    return html`<div class="grid halves">
        ${files('probes').map((file) => html`<section class="card" key=${file}><${Chart} title=${`Learned: ${file}`} x=${x} height=${190} format=${(v) => percent(v)}
            series=${[
                { label: 'right', values: of('probes', file, 'accuracy'), color: 3, points: true },
                { label: '95 % low', values: of('probes', file, 'accuracy_low'), color: 3, faint: true },
                { label: '95 % high', values: of('probes', file, 'accuracy_high'), color: 3, faint: true },
            ]} /></section>`)}
        ${files('general').map((file) => html`<section class="card" key=${file}><${Chart} title=${file === 'shipped' ? 'Forgetting: general text' : `Forgetting: ${file}`} x=${x} height=${190}
            series=${[{ label: 'loss', values: of('general', file, 'loss'), color: 7, points: true }]} /></section>`)}
    </div>`;
}

/**
 * Validation loss minus the mean training loss since the validation before. The server says it of the
 * lines that it has thinned out; lines that came since are all here.
 */
function gaps(curve) {
    let sum = 0;
    let count = 0;
    return curve.validation_loss.map((value, at) => {
        if (curve.training_loss[at] !== null) {
            sum += curve.training_loss[at];
            count += 1;
        }
        if (value === null) return null;
        const found = curve.generalisation_gap[at] ?? (count ? value - sum / count : null);
        sum = count = 0;
        return found;
    });
}

function csvOf(curve) {
    const names = Object.keys(curve);
    const rows = curve.x.map((_, at) => names.map((name) => curve[name][at] ?? '').join(','));
    return [names.map((name) => (name === 'x' ? 'iteration' : name)).join(','), ...rows].join('\n') + '\n';
}
