/** The end of the trainer's log; it follows while the run goes on. */
import { html, useEffect, useRef } from '../../core/html.js';
import { api } from '../../core/api.js';
import { time } from '../../core/format.js';
import { useResource } from '../../core/resource.js';
import { CopyButton } from '../../components/controls.js';
import { Shown } from '../../components/feedback.js';

const LINES = 500;
const FOLLOW_MILLISECONDS = 2000;

export function Log({ name, isActive }) {
    const log = useResource(() => api.runLog(name, LINES), [name]);
    const box = useRef(/** @type {HTMLElement | null} */ (null));
    useEffect(() => {
        if (!isActive) return undefined;
        const timer = setInterval(log.reload, FOLLOW_MILLISECONDS);
        return () => clearInterval(timer);
    }, [isActive]);
    useEffect(() => {
        // Who has scrolled up to read something stays there.
        const element = box.current;
        if (element && element.scrollHeight - element.scrollTop - element.clientHeight < 120) element.scrollTop = element.scrollHeight;
    }, [log.data]);
    const textOf = () => log.data.lines.map((line) => [line.timestamp, line.level, line.message].filter(Boolean).join(' ')).join('\n');
    return html`<${Shown} resource=${log} what="Reading the log">${(found) => found.lines.length === 0
        ? html`<p class="quiet">Nothing was logged. A run that goes well says little.</p>`
        : html`<section class="card"><div class="card-head"><h2>trainer.log</h2><${CopyButton} text=${textOf} /></div>
            <div class="log code" ref=${box} tabindex="0" role="log" aria-label="trainer.log">${found.lines.map((line, at) => html`<div key=${at} class=${(line.level ?? '').toLowerCase()}>
                <span class="quiet">${time(line.timestamp)}</span> ${line.message}</div>`)}</div></section>`}<//>`;
}
