/** One run: its curves as they grow, its checkpoints, what it answers, its recipe and its log. */
import { html } from '../../core/html.js';
import { api } from '../../core/api.js';
import { count, figure, gigabytes, isActive, minutes, percent, PHASES } from '../../core/format.js';
import { currentRun, runsChanged } from '../../core/live.js';
import { useResource } from '../../core/resource.js';
import { address, navigate, setQuery } from '../../core/router.js';
import { ProgressBar, Tabs, WorkButton } from '../../components/controls.js';
import { confirmed } from '../../components/dialog.js';
import { Badge, Notice, Problem, Shown, toast, toastError } from '../../components/feedback.js';
import { Checkpoints } from './checkpoints.js';
import { useCurve } from './curve.js';
import { Curves } from './curves.js';
import { Log } from './log.js';
import { Processes } from './processes.js';
import { RecipeFacts } from './recipe_facts.js';
import { Samples } from './samples.js';

const TABS = [
    { id: 'curves', label: 'Curves' },
    { id: 'checkpoints', label: 'Checkpoints' },
    { id: 'samples', label: 'Answers' },
    { id: 'recipe', label: 'Recipe' },
    { id: 'log', label: 'Log' },
];

export function Monitor({ name, query }) {
    const run = useResource(() => api.getRun(name), [name, runsChanged.value]);
    return html`<div class="page">
        <${Shown} resource=${run} what="Reading the run">${(found) => html`<${Opened} found=${found} reload=${run.reload} tab=${query.tab ?? 'curves'} />`}<//>
    </div>`;
}

function Opened({ found, reload, tab }) {
    const { run, state, record } = found;
    const evaluations = useResource(() => api.runEvaluations(run.training_id), [run.training_id]);
    const { curve, error, isLoaded } = useCurve(run.training_id, run.output_dir, (events) => {
        if (events.some((event) => event.event === 'evaluation_update')) evaluations.reload();
        if (events.some(changesTheRun)) reload();
    });
    const live = currentRun.value?.training_id === run.training_id ? currentRun.value : null;
    const phase = live?.phase ?? run.phase;
    return html`
        <${Head} run=${run} phase=${phase} reload=${reload} />
        <${Troubles} state=${state} record=${record} live=${live} />
        <${Figures} curve=${curve} run=${run} phase=${phase} live=${live} performance=${found.performance} />
        <${Processes} processes=${live?.processes?.length ? live.processes : state.processes} />
        <${Tabs} label="Parts of the run" tabs=${TABS} chosen=${tab} onChange=${(id) => setQuery({ tab: id === 'curves' ? null : id })} />
        <div role="tabpanel" aria-labelledby=${`tab-${tab}`}>
            ${error && html`<${Problem} error=${error} />`}
            ${tab === 'curves' && isLoaded && html`<${Curves} curve=${curve} best=${run.best_iteration} evaluations=${evaluations.data?.evaluations ?? []} isActive=${isActive(phase)} />`}
            ${tab === 'checkpoints' && html`<${Checkpoints} run=${run} checkpoints=${found.checkpoints} evaluations=${evaluations.data?.evaluations ?? []} reload=${reload} isActive=${isActive(phase)} />`}
            ${tab === 'samples' && html`<${Samples} samples=${evaluations.data?.samples ?? []} />`}
            ${tab === 'recipe' && html`<${RecipeFacts} record=${record} />`}
            ${tab === 'log' && html`<${Log} name=${run.name} isActive=${isActive(phase)} />`}
        </div>`;
}

/** A validation comes with a checkpoint mostly; an end with a last one. */
function changesTheRun(event) {
    return event.event === 'training_update' ? (event.validation_loss ?? null) !== null : event.event !== 'evaluation_update';
}

function Head({ run, phase, reload }) {
    const [word, tone] = PHASES[phase] ?? [phase, 'quiet'];
    const canResume = ['stopped', 'failed', 'interrupted'].includes(phase) && run.num_checkpoints > 0;
    const act = (work, said) => work().then(() => { toast(said); reload(); }, toastError);
    const rename = async () => {
        const name = await confirmed({ title: 'Rename the run', text: 'Its id stays, so that links by id still work.', action: 'Rename', input: { label: 'Name', value: run.name } });
        if (name) await api.renameRun(run.name, name).then((reply) => navigate(address('runs', reply.name), { replace: true }), toastError);
    };
    return html`<div class="page-head">
        <div class="grow"><h1 class="run-name">${run.name}</h1>
            <p class="quiet">${run.training_type.toUpperCase()} of ${run.model_name} on <a href=${address('data', run.dataset)}>${run.dataset}</a> <${Badge} tone=${tone}>${word}<//></p></div>
        ${isActive(phase) && html`<${WorkButton} class="danger" onPress=${() => act(() => api.stopTraining(), 'The run ends after this step and keeps a checkpoint')}>Stop<//>`}
        ${phase === 'queued' && html`<${WorkButton} onPress=${() => act(() => api.leaveQueue(run.name), 'Taken off the queue')}>Leave the queue<//>`}
        ${canResume && html`<${WorkButton} class="primary" onPress=${() => act(() => api.resumeRun(run.name), 'The run goes on')}>Resume<//>`}
        ${run.num_checkpoints > 0 && html`<a class="button" href=${`/chat?run=${encodeURIComponent(run.name)}`}>Chat</a>`}
        <a class="button" href=${`/train?clone=${encodeURIComponent(run.name)}`}>Clone</a>
        <button disabled=${isActive(phase)} onClick=${rename}>Rename</button>
    </div>`;
}

/** What one should know before believing the curves. */
function Troubles({ state, record, live }) {
    const overfits = live?.overfitting ?? state.overfitting;
    const since = live?.overfitting_iteration ?? state.overfitting_iteration;
    return html`
        ${state.error && html`<${Problem} title="The run failed" error=${state.error} />`}
        ${overfits && html`<${Notice} tone="warn"><strong>It overfits since iteration ${since}.</strong><span>The loss on held-out documents rises while the training loss falls. The best checkpoint is from before that; more iterations will not help.</span><//>`}
        ${state.stopped_early && html`<${Notice}>Stopped early: the held-out loss did not improve any more.<//>`}
        ${record.warnings.map((text) => html`<${Notice} tone="warn">${text}<//>`)}`;
}

function Figures({ curve, run, phase, live, performance }) {
    const last = (name) => curve[name].findLast((value) => value !== null);
    const iteration = live?.iteration ?? run.current_iteration;
    const validation = last('validation_loss');
    const facts = [
        ['Iteration', html`${count(iteration)} <span class="quiet small-text">of ${count(run.max_iterations)}</span>`],
        ['Training loss', figure(last('training_loss'))],
        ['Validation loss', figure(validation)],
        ['Perplexity', figure(validation === undefined ? null : Math.exp(validation), 2)],
        ['Best', html`${figure(run.best_validation_loss)} ${run.best_iteration !== null && html`<span class="quiet small-text">at ${run.best_iteration}</span>`}`],
        ['Tokens per second', figure(performance.avg_tokens_per_second ?? last('tokens_per_second'), 0)],
        ['Peak memory', gigabytes(performance.peak_memory_gb ?? last('memory_usage_gb'))],
        isActive(phase) ? ['Time left', minutes(live?.eta_minutes ?? run.eta_minutes)] : ['Training time', minutes(performance.training_minutes)],
    ];
    return html`<section class="card">
        ${isActive(phase) && html`<div class="progress-line"><${ProgressBar} value=${iteration / run.max_iterations} label="Progress of the run" /><span>${percent(iteration / run.max_iterations)}</span></div>`}
        <dl class="figures">${facts.map(([label, value]) => html`<div key=${label}><dt class="name">${label}</dt><dd class="value">${value}</dd></div>`)}</dl>
    </section>`;
}
