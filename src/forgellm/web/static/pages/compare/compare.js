/** Several runs side by side: their curves, what differs in their recipes, how they ended. */
import { html, useMemo, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { figure, gigabytes, minutes, short } from '../../core/format.js';
import { runsChanged } from '../../core/live.js';
import { useResource } from '../../core/resource.js';
import { address, setQuery } from '../../core/router.js';
import { Chart } from '../../components/chart.js';
import { saveFile } from '../../components/controls.js';
import { Empty, Shown } from '../../components/feedback.js';
import { Choice } from '../../components/field.js';
import { Icon } from '../../components/icon.js';
import { Table } from '../../components/table.js';
import { columnsOf, smoothed } from '../runs/curve.js';
import { isLog, LossTools, smoothing } from '../runs/loss_tools.js';
import { joinedCurves } from './join.js';
import { RunPicker } from './picker.js';
import { savePicture } from './picture.js';

export const title = 'Compare';
const MOST = 8;
const AXES = [{ value: 'x', label: 'Iterations' }, { value: 'trained_tokens', label: 'Tokens' }, { value: 'seconds', label: 'Time' }];

export function View({ query }) {
    const names = (query.runs ?? '').split(',').filter(Boolean);
    const choose = (chosen) => setQuery({ runs: chosen.slice(0, MOST).join(',') });
    return html`<div class="page">
        <div class="page-head"><h1>Compare runs</h1></div>
        <${RunPicker} names=${names} most=${MOST} onChange=${choose} />
        ${names.length === 0
            ? html`<${Empty} title="Choose runs to compare"><p>Two or more, of any kind, up to ${MOST}.</p><//>`
            : html`<${Compared} key=${names.join()} names=${names} />`}
    </div>`;
}

async function read(names) {
    const [compared, ...curves] = await Promise.all([api.compareRuns(names), ...names.map((name) => api.dashboardData(name))]);
    return compared.runs.map((run, at) => ({ ...run, curve: columnsOf(curves[at].training_data), recipe: curves[at].training_config, differences: compared.differences }));
}

function Compared({ names }) {
    const found = useResource(() => read(names), [names.join(), runsChanged.value]);
    return html`<${Shown} resource=${found} what="Reading the runs">${(runs) => html`<${Overlaid} runs=${runs} /><${Results} runs=${runs} /><${Differences} runs=${runs} />`}<//>`;
}

function Overlaid({ runs }) {
    const [axis, setAxis] = useState('x');
    const weight = smoothing.value;
    const charts = useMemo(() => ({
        training: joinedCurves(runs, axis, (curve) => smoothed(curve.training_loss, weight)),
        validation: joinedCurves(runs, axis, (curve) => curve.validation_loss),
    }), [runs, axis, weight]);
    const label = AXES.find((item) => item.value === axis)?.label.toLowerCase();
    const xFormat = axis === 'seconds' ? (value) => minutes(value / 60) : short;
    return html`<${LossTools} first=${html`<${Choice} label="Over" value=${axis} options=${AXES} onChange=${setAxis} />`}>
            <button class="small" onClick=${() => saveFile('compare.csv', csvOf(runs), 'text/csv')}>Save as CSV</button>
            <button class="small" onClick=${() => savePicture('compare.png', runs.map((run) => run.name))}>Save as PNG</button>
        <//>
        <div class="grid halves compared">
            ${Object.entries(charts).map(([name, { x, series }]) => html`<section class="card" key=${name}>
                <${Chart} title=${`${name === 'training' ? 'Training' : 'Validation'} loss`} x=${x} xLabel=${label} xFormat=${xFormat} isLog=${isLog.value} group="compare" height=${320}
                    series=${series.map((values, at) => ({ label: runs[at].name, values, color: at + 1, sparse: true, points: name === 'validation' }))} /></section>`)}
        </div>`;
}

function Results({ runs }) {
    const of = (name) => (run) => run.performance[name];
    const columns = [
        { id: 'name', label: 'Run', value: (run) => run.name, show: (run) => html`<span class="row nowrap-start"><span class=${`swatch color-${runs.indexOf(run) + 1}`}></span><a href=${address('runs', run.name)}>${run.name}</a></span>` },
        { id: 'phase', label: 'State', value: (run) => run.phase },
        { id: 'best', label: 'Best validation', align: 'end', value: of('best_validation_loss'), show: (run) => figure(run.performance.best_validation_loss, 4) },
        { id: 'at', label: 'At', align: 'end', value: of('best_iteration') },
        { id: 'final', label: 'Final loss', align: 'end', value: of('final_loss'), show: (run) => figure(run.performance.final_loss, 4) },
        { id: 'gap', label: 'Gap', align: 'end', value: of('generalisation_gap'), show: (run) => figure(run.performance.generalisation_gap) },
        { id: 'tokens', label: 'Tokens', align: 'end', value: of('trained_tokens'), show: (run) => short(run.performance.trained_tokens) },
        { id: 'speed', label: 'Tok/s', align: 'end', value: of('avg_tokens_per_second'), show: (run) => figure(run.performance.avg_tokens_per_second, 0) },
        { id: 'memory', label: 'Memory', align: 'end', value: of('peak_memory_gb'), show: (run) => gigabytes(run.performance.peak_memory_gb) },
        { id: 'time', label: 'Time', align: 'end', value: of('training_minutes'), show: (run) => minutes(run.performance.training_minutes) },
    ];
    return html`<section class="card flush"><${Table} caption="How the runs ended" rows=${runs} rowKey=${(run) => run.training_id} columns=${columns} sort=${{ id: 'best', down: false }} /></section>`;
}

/** Only the recipe fields that are not the same in all. */
function Differences({ runs }) {
    const [wanted, setWanted] = useState('');
    if (runs.length < 2) return null;
    const fields = Object.entries(runs[0].differences).filter(([name]) => name.includes(wanted.trim().toLowerCase()));
    const written = (value) => (value === null ? '–' : typeof value === 'object' ? JSON.stringify(value) : String(value));
    const columns = [
        { id: 'field', label: 'Field', value: ([name]) => name, show: ([name]) => html`<code>${name}</code>` },
        ...runs.map((run, at) => ({ id: `run-${at}`, label: html`<span class=${`swatch color-${at + 1}`}></span>${run.name}`, value: ([, values]) => written(values[at]) })),
    ];
    return html`<section class="card"><div class="card-head"><h2>What differs</h2>
            <label><span class="hidden">Filter the fields</span><input type="search" placeholder="Filter fields" value=${wanted} onInput=${(event) => setWanted(event.target.value)} /></label></div>
        ${fields.length ? html`<${Table} caption="Recipe fields that differ" rows=${fields} rowKey=${([name]) => name} columns=${columns} />` : html`<p class="quiet"><${Icon} name="check" /> ${wanted ? 'No field of that name differs.' : 'The recipes are the same.'}</p>`}
    </section>`;
}

function csvOf(runs) {
    const names = ['trained_tokens', 'seconds', 'training_loss', 'validation_loss', 'learning_rate', 'tokens_per_second'];
    const rows = runs.flatMap((run) => run.curve.x.map((x, at) => [JSON.stringify(run.name), x, ...names.map((name) => run.curve[name][at] ?? '')].join(',')));
    return [['run', 'iteration', ...names].join(','), ...rows].join('\n') + '\n';
}
