/** What is here, what is running, and the one obvious next step. */
import { html } from '../../core/html.js';
import { api } from '../../core/api.js';
import { ago, baseName, counted, figure, gigabytes, isActive, minutes, PHASES, plural, short } from '../../core/format.js';
import { currentRun, runsChanged } from '../../core/live.js';
import { useResource } from '../../core/resource.js';
import { address, navigate } from '../../core/router.js';
import { ProgressBar, WorkButton } from '../../components/controls.js';
import { Badge, Shown } from '../../components/feedback.js';
import { JobProgress, useJob } from '../../components/job.js';

export const title = 'Start';

export function View() {
    const here = useResource(whatIsHere, [runsChanged.value]);
    return html`<div class="page">
        <div class="page-head"><h1>Teach a model what you know</h1></div>
        <${Shown} resource=${here} what="Looking at this machine">${(found) => html`
            <${NextStep} found=${found} />
            <div class="grid halves">
                <${LatestRuns} runs=${found.runs} />
                <div class="stack">
                    <${Workspace} found=${found} />
                    <${Machine} health=${found.health} />
                </div>
            </div>`}
        <//>
    </div>`;
}

async function whatIsHere() {
    const [health, models, datasets, runs] = await Promise.all([
        api.health(), api.listModels(), api.datasetInfo(), api.listRuns({ limit: 6 }),
    ]);
    return { health, models, datasets: datasets.datasets, runs: runs.runs, numRuns: runs.total };
}

/** One card, one thing to do: watch, try, train, or the demo for who has nothing yet. */
function NextStep({ found }) {
    const running = found.runs.find((run) => run.is_training);
    if (running) return html`<${Running} run=${running} />`;
    const trained = found.runs.find((run) => run.num_checkpoints > 0);
    const isNew = found.datasets.length === 0 || found.models.cached_models.length === 0;
    if (!trained && isNew) return html`<${FirstRun} />`;
    if (!trained) {
        return html`<section class="card next"><h2>Train your first model</h2>
            <p>There ${found.datasets.length === 1 ? 'is a dataset' : `are ${found.datasets.length} datasets`} here, and a model to start from.</p>
            <div class="buttons"><a class="button primary" href="/train">Choose what to train</a><${DemoButton} quiet /></div>
        </section>`;
    }
    return html`<section class="card next"><h2>Talk to what you trained</h2>
        <p>${trained.name} has ${plural(trained.num_checkpoints, 'checkpoint')}${trained.best_validation_loss === null ? '' : `; its best validation loss is ${figure(trained.best_validation_loss)}`}.</p>
        <div class="buttons">
            <a class="button primary" href=${`/chat?run=${encodeURIComponent(trained.name)}`}>Chat, side by side with its base</a>
            <a class="button" href="/train">Train another</a>
        </div>
    </section>`;
}

function Running({ run }) {
    const event = currentRun.value?.training_id === run.training_id ? currentRun.value : null;
    const iteration = event?.iteration ?? run.current_iteration;
    return html`<section class="card next"><h2>Training now</h2>
        <p class="cut" title=${run.name}>${baseName(run.model_name)} on ${run.dataset}</p>
        <${ProgressBar} value=${iteration / run.max_iterations} label="Progress" />
        <p class="quiet">iteration ${iteration} of ${run.max_iterations}${event?.training_loss ? `, loss ${figure(event.training_loss)}` : ''}${event?.eta_minutes ? `, about ${minutes(event.eta_minutes)} left` : ''}</p>
        <div class="buttons"><a class="button primary" href=${address('runs', run.name)}>Watch it learn</a></div>
    </section>`;
}

function FirstRun() {
    return html`<section class="card next"><h2>See it work in ten minutes</h2>
        <p>The demo teaches a small model (SmolLM2, 135 million parameters) the handbook of an invented village.
           Nothing leaves this machine; the model is fetched once, 93 MB.</p>
        <div class="buttons"><${DemoButton} /><a class="button" href="/data">Bring your own documents</a></div>
    </section>`;
}

/** Fetches the demo's model and documents, then goes to a filled-in Train view. */
function DemoButton({ quiet = false }) {
    const { job, begin, clear } = useJob((done) => {
        sessionStorage.setItem('forgellm.recipe', JSON.stringify(done.result.recipe));
        navigate('/train?from=demo');
    });
    if (job && job.status !== 'cancelled') return html`<div class="grow"><${JobProgress} job=${job} onClear=${clear} /></div>`;
    return html`<${WorkButton} class=${quiet ? '' : 'primary'} onPress=${() => begin(() => api.prepareDemo())}>Set up the demo<//>`;
}

function LatestRuns({ runs }) {
    return html`<section class="card"><div class="card-head"><h2>Runs</h2>${runs.length > 0 && html`<a href="/runs">All runs</a>`}</div>
        ${runs.length === 0 && html`<p class="quiet">Nothing has been trained in this workspace yet.</p>`}
        <ul class="plain-list">${runs.map((run) => {
            const [word, tone] = PHASES[run.phase] ?? [run.phase, 'quiet'];
            return html`<li key=${run.training_id}><a href=${address('runs', run.name)} class="cut" title=${run.name}>${baseName(run.model_name)} on ${run.dataset}</a>
                <span class="quiet small-text">${ago(run.created_at)}</span>
                <${Badge} tone=${tone}>${isActive(run.phase) ? `${Math.round(run.progress_percentage)} %` : word}<//></li>`;
        })}</ul>
    </section>`;
}

function Workspace({ found }) {
    const { models, datasets } = found;
    const trained = [...models.cpt_models, ...models.ift_models].length;
    const tokens = datasets.reduce((sum, item) => sum + (item.estimated_tokens ?? 0), 0);
    return html`<section class="card"><h2>This workspace</h2><dl class="facts">
        <dt>Models to start from</dt><dd><a href="/models">${models.cached_models.length}</a></dd>
        <dt>Datasets</dt><dd><a href="/data">${datasets.length}</a>${tokens > 0 && html` <span class="quiet">about ${short(tokens)} tokens</span>`}</dd>
        <dt>Runs</dt><dd><a href="/runs">${found.numRuns}</a>${trained > 0 && html` <span class="quiet">${trained} with checkpoints</span>`}</dd>
        <dt>Published models</dt><dd><a href="/models">${models.published_models.length}</a></dd>
    </dl></section>`;
}

function Machine({ health }) {
    const info = health.system_info;
    const isUp = health.components.model_server === 'running';
    return html`<section class="card"><h2>This machine</h2><dl class="facts">
        <dt>Memory</dt><dd>${gigabytes(info.memory_available_gb)} free <span class="quiet">of ${gigabytes(info.memory_total_gb)}</span></dd>
        <dt>Processor</dt><dd>${plural(info.num_cores, 'core')}</dd>
        ${info.gpus.length > 0 && html`<dt>GPU</dt><dd>${counted(info.gpus)}</dd>`}
        <dt>Disk</dt><dd>${gigabytes(info.disk_free_gb)} free</dd>
        <dt>Model server</dt><dd>${isUp ? html`<${Badge} tone="good">running<//>` : html`<${Badge} tone="warn">off<//>`}</dd>
        <dt>ForgeLLM</dt><dd>${health.version} <span class="quiet">on Python ${info.python_version}</span></dd>
    </dl></section>`;
}
