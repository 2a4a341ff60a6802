/** Work that the server does in the background, followed from where it was begun. */
import { html, useEffect, useState } from '../core/html.js';
import { api } from '../core/api.js';
import { jobs } from '../core/live.js';
import { ProgressBar, WorkButton } from './controls.js';
import { Problem, toastError } from './feedback.js';

/**
 * @param {(job: any) => void} [onEnd] called once when a job begun here is completed
 * @returns {{job: any, begin: (ask: () => Promise<{job_id: string}>) => Promise<void>, follow: (reply: {job_id: string}) => void, clear: () => void}}
 */
export function useJob(onEnd) {
    const [begun, setBegun] = useState(/** @type {string | null} */ (null));
    const job = jobs.value.get(begun) ?? null;
    useEffect(() => {
        if (job?.status === 'completed') onEnd?.(job);
    }, [job?.status]);
    const follow = (reply) => setBegun(reply.job_id);
    const begin = (ask) => ask().then(follow, toastError);
    return { job, begin, follow, clear: () => setBegun(null) };
}

export const isUnfinished = (job) => job?.status === 'queued' || job?.status === 'running';

/** While it works: how far it is, and the way to end it. When it failed: why. */
export function JobProgress({ job, onClear }) {
    if (!job || job.status === 'completed') return null;
    if (job.status === 'failed') return html`<${Problem} error=${job.error} onRetry=${onClear} />`;
    if (job.status === 'cancelled') return html`<p class="quiet">Cancelled.</p>`;
    return html`<div class="row"><div class="grow stack-tight"><${ProgressBar} value=${job.status === 'queued' ? null : job.progress} label=${job.kind} />
            <span class="quiet small-text" role="status">${job.status === 'queued' ? 'waiting for other work' : job.message || 'working'}</span></div>
        <${WorkButton} class="small" onPress=${() => api.cancelJob(job.job_id).catch(toastError)}>Cancel<//></div>`;
}
