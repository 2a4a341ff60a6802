/** What is being made of models now, and what was made last: it is here again after a reload. */
import { html, useEffect, useRef } from '../../core/html.js';
import { jobs } from '../../core/live.js';
import { Notice, Problem } from '../../components/feedback.js';
import { isUnfinished, JobProgress } from '../../components/job.js';
import { JOB_WORDS, Made } from '../../components/made.js';

const SHOWN_ENDED = 2;

/** @param {{onMade: () => void}} props called when one of them has ended well */
export function Work({ onMade }) {
    const all = [...jobs.value.values()].filter((job) => job.kind in JOB_WORDS).reverse();
    const numMade = all.filter((job) => job.status === 'completed').length;
    const before = useRef(numMade);
    useEffect(() => {
        if (numMade > before.current) onMade();
        before.current = numMade;
    }, [numMade]);
    const ended = all.filter((job) => !isUnfinished(job) && job.status !== 'cancelled').slice(0, SHOWN_ENDED);
    const shown = [...all.filter(isUnfinished), ...ended];
    if (!shown.length) return null;
    return html`<section class="stack" aria-label="Work on models">${shown.map((job) => html`<${Piece} key=${job.job_id} job=${job} />`)}</section>`;
}

function Piece({ job }) {
    const word = JOB_WORDS[job.kind];
    if (job.status === 'completed') return html`<${Notice} tone="good"><${Made} job=${job} /><//>`;
    if (job.status === 'failed') return html`<${Problem} title=${`${word} failed`} error=${job.error} />`;
    return html`<div class="card stack-tight"><strong>${word}</strong><${JobProgress} job=${job} /></div>`;
}
