/** Choose a model, data and a recipe; see what it will take; start. */
import { html, useEffect, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { useResource, useRested } from '../../core/resource.js';
import { address, navigate } from '../../core/router.js';
import { Loading, Notice, Problem, toast, toastError } from '../../components/feedback.js';
import { Choice } from '../../components/field.js';
import { Commands } from './commands.js';
import { DatasetPicker } from './dataset_picker.js';
import { ModelPicker } from './model_picker.js';
import { Outlook } from './outlook.js';
import { batchProblem } from './processes.js';
import { AllFields, MainFields } from './recipe_fields.js';

export const title = 'Train';
const DRAFT = 'forgellm.recipe';
const KINDS = [
    { value: 'cpt', label: 'Documents', hint: 'cpt', says: 'Continued pre-training: the model reads your documents and takes on their language and facts.' },
    { value: 'ift', label: 'Conversations', hint: 'ift', says: 'Instruction fine-tuning: the model learns to answer as your example conversations do.' },
    { value: 'dpo', label: 'Preferences', hint: 'dpo', says: 'Preference training (DPO): the model learns to prefer the chosen answer over the rejected one.' },
    { value: 'orpo', label: 'Preferences, in one go', hint: 'orpo', says: 'ORPO: the model learns the chosen answers and to prefer them at once, without a model to compare with.' },
];

export function View({ query }) {
    const fields = useResource(recipeFields, []);
    const begin = useResource(() => firstRecipe(query), [query.clone, query.model, query.dataset, query.base_run]);
    if (fields.error || begin.error) return html`<div class="page"><${Problem} error=${fields.error ?? begin.error} /></div>`;
    if (!fields.data || !begin.data) return html`<div class="page"><${Loading} /></div>`;
    return html`<${Form} key=${query.clone ?? 'new'} fields=${fields.data} first=${begin.data} note=${query.from === 'demo' ? 'demo' : query.clone} />`;
}

/** The recipe's fields with their meaning, defaults and ranges, as the server itself describes them. */
async function recipeFields() {
    const document = await (await fetch('/openapi.json')).json();
    return document.paths['/api/training/start'].post.requestBody.content['application/json'].schema;
}

/** From the address, else what was being filled in in this tab before, else a first proposal. */
async function firstRecipe(query) {
    if (query.clone) return (await api.cloneRun(query.clone)).recipe;
    const asked = {};
    if (query.model) asked.model_name = query.model;
    if (query.dataset) asked.dataset = query.dataset;
    if (query.base_run) asked.base_run = query.base_run;
    if (query.type) asked.training_type = query.type;
    return Object.assign({ training_type: 'cpt' }, draft(), asked);
}

function draft() {
    try {
        return JSON.parse(sessionStorage.getItem(DRAFT) ?? '{}');
    } catch {
        return {};
    }
}

function Form({ fields, first, note }) {
    const [recipe, setRecipe] = useState(() => withoutDefaults(first, fields.properties));
    useEffect(() => sessionStorage.setItem(DRAFT, JSON.stringify(recipe)), [recipe]);
    const change = (values) => setRecipe((before) => cleaned({ ...before, ...values }));
    const replace = (values) => setRecipe(withoutDefaults(values, fields.properties));
    const outlook = useOutlook(recipe);
    const datasets = useResource(() => api.datasetInfo(), []);
    const problems = { ...problemsByField(outlook.error), ...batchProblem(recipe, fields.properties) };
    const kinds = KINDS.filter((kind) => fields.properties.training_type.enum.includes(kind.value));
    const props = { recipe, change, problems, fields: fields.properties };
    return html`<div class="page">
        <div class="page-head"><h1>Train</h1><${Import} onRecipe=${replace} /></div>
        ${note === 'demo' && html`<${Notice} tone="good">The demo is ready: its model, its documents and a recipe that works. Press Start.<//>`}
        ${note && note !== 'demo' && html`<${Notice}><span>This is the recipe of <a href=${address('runs', note)}>${note}</a>. Change what you like.</span><//>`}
        <div class="train">
            <form class="stack" onSubmit=${(event) => event.preventDefault()}>
                <section class="card stack">
                    <${Choice} label="Teach it" value=${recipe.training_type} options=${kinds} onChange=${(value) => change({ training_type: value })} />
                    <p class="quiet">${kinds.find((kind) => kind.value === recipe.training_type)?.says}</p>
                </section>
                <section class="card"><${ModelPicker} ...${props} /></section>
                <section class="card"><${DatasetPicker} ...${props} datasets=${datasets} /></section>
                <section class="card"><h2>How</h2><${MainFields} ...${props} outlook=${outlook.data} /></section>
                <section class="card"><${AllFields} ...${props} /></section>
            </form>
            <div class="stack aside">
                <${Outlook} recipe=${recipe} datasets=${datasets.data?.datasets} outlook=${outlook} change=${change} onStart=${start} />
                <${Commands} recipe=${recipe} />
            </div>
        </div>
    </div>`;
}

async function start(recipe, queue) {
    try {
        const reply = await api.startTraining(queue ? { ...recipe, queue: true } : recipe);
        sessionStorage.removeItem(DRAFT);
        toast(reply.message);
        navigate(address('runs', reply.training_id));
    } catch (error) {
        toastError(error);
    }
}

/** What the recipe would take, asked again when one has stopped typing. */
function useOutlook(recipe) {
    const rested = useRested(JSON.stringify(recipe), 350);
    const isComplete = Boolean((recipe.model_name || recipe.base_run) && recipe.dataset);
    return useResource(async () => (isComplete ? api.estimate(JSON.parse(rested)) : null), [rested, isComplete]);
}

function problemsByField(error) {
    const found = {};
    for (const problem of error?.details?.problems ?? []) found[problem.field.split('.')[0]] ??= problem.message;
    return found;
}

/** Empty fields are left to their defaults, not sent as nothing. */
function cleaned(recipe) {
    return Object.fromEntries(Object.entries(recipe).filter(([, value]) => value !== null && value !== undefined && value !== ''));
}

/** Of a whole recipe only what is not the default anyway: that is what one would have filled in. */
function withoutDefaults(recipe, properties) {
    const isDefault = ([name, value]) => name !== 'training_type' && JSON.stringify(value) === JSON.stringify(properties[name]?.default);
    return cleaned(Object.fromEntries(Object.entries(recipe).filter((entry) => !isDefault(entry))));
}

function Import({ onRecipe }) {
    const read = async (event) => {
        const file = event.target.files[0];
        event.target.value = '';
        if (!file) return;
        try {
            onRecipe((await api.parseRecipe(await file.text())).recipe);
            toast('Recipe imported');
        } catch (error) {
            toastError(error);
        }
    };
    return html`<label class="button file-button">Import YAML<input type="file" accept=".yaml,.yml,.json" onChange=${read} /></label>`;
}
