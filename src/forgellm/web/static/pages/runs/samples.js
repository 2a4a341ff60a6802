/** What the model answered to the same prompts at each checkpoint, side by side. */
import { html } from '../../core/html.js';
import { Empty } from '../../components/feedback.js';

export function Samples({ samples }) {
    if (!samples.length) {
        return html`<${Empty} title="No answers were sampled"><p>Name prompts in the recipe field <code>sample_prompts</code>, and their answers are kept at each checkpoint.</p><//>`;
    }
    const prompts = [...new Set(samples.map((line) => line.prompt))];
    return html`<div class="stack">${prompts.map((prompt) => html`<section class="card" key=${prompt}><h2>${prompt}</h2>
        <div class="samples">${samples.filter((line) => line.prompt === prompt).map((line) => html`<div key=${line.iteration}>
            <h3>${line.iteration === 0 ? 'untrained' : `iteration ${line.iteration}`}</h3>
            <p class="answer">${line.answer || html`<span class="quiet">(empty)</span>`}${line.finish_reason === 'length' && html`<span class="quiet"> …</span>`}</p>
        </div>`)}</div>
    </section>`)}</div>`;
}
