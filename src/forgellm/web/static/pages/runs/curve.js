/** A run's figures as columns for charts: what the server has, and what comes in while one looks. */
import { useEffect, useMemo, useRef, useState } from '../../core/html.js';
import { api, shown } from '../../core/api.js';
import { followRun } from '../../core/live.js';

const FIGURES = ['training_loss', 'validation_loss', 'learning_rate', 'tokens_per_second', 'memory_usage_gb', 'grad_norm', 'trained_tokens', 'generalisation_gap'];
const READ_MILLISECONDS = 400;

/**
 * The run's lines as `{x, training_loss, ...}`, each an array by iteration; the whole curve has at
 * most 2,000 points, and what is added while the page is open comes whole. `onEvents` is called with
 * the events of the run as they come.
 */
export function useCurve(trainingId, outputDir, onEvents) {
    const lines = useRef(/** @type {any[]} */ ([]));
    const [version, setVersion] = useState(0);
    const [error, setError] = useState(/** @type {any} */ (null));
    const [isLoaded, setLoaded] = useState(false);
    const handle = useRef(onEvents);
    handle.current = onEvents;

    useEffect(() => {
        let isOpen = true;
        let timer = 0;
        let stop = () => {};
        const redraw = () => isOpen && setVersion((before) => before + 1);
        // One question at a time, however fast the run is.
        const readOn = async () => {
            for (let hasMore = true; hasMore && isOpen; ) {
                const reply = await api.runMetrics(trainingId, { since_seq: lines.current.at(-1)?.seq ?? 0 });
                lines.current = joined(lines.current, reply.metrics);
                hasMore = reply.has_more;
            }
            timer = 0;
            redraw();
        };
        const soon = () => (timer ||= window.setTimeout(() => readOn().catch(() => (timer = 0)), READ_MILLISECONDS));
        api.dashboardData(outputDir).then((reply) => {
            if (!isOpen) return;
            lines.current = reply.training_data;
            setLoaded(true);
            redraw();
            stop = followRun(trainingId, lines.current.at(-1)?.seq, (events) => {
                handle.current(events);
                soon();
            });
        }, (found) => isOpen && setError(shown(found)));
        return () => {
            isOpen = false;
            clearTimeout(timer);
            stop();
        };
    }, [trainingId, outputDir]);

    const curve = useMemo(() => columnsOf(lines.current), [version]);
    return { curve, error, isLoaded };
}

/** A resumed run writes iterations again: the later line counts. */
function joined(before, added) {
    if (!added.length) return before;
    const first = added[0].iteration;
    const kept = before.at(-1)?.iteration >= first ? before.filter((line) => line.iteration < first) : before;
    return [...kept, ...added];
}

export function columnsOf(lines) {
    const columns = { x: lines.map((line) => line.iteration) };
    for (const name of FIGURES) columns[name] = lines.map((line) => line[name] ?? null);
    columns.seconds = secondsOf(lines);
    return columns;
}

/** Seconds of training since the first line. Pauses, between a stop and a resume, do not count. */
function secondsOf(lines) {
    let total = 0;
    let before = /** @type {number | null} */ (null);
    const usual = median(lines.slice(1).map((line, at) => Date.parse(line.timestamp) - Date.parse(lines[at].timestamp)));
    return lines.map((line) => {
        const now = Date.parse(line.timestamp);
        if (before !== null) total += Math.min(now - before, Math.max(60_000, 20 * usual));
        before = now;
        return Math.round(total / 1000);
    });
}

function median(values) {
    return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

/** Exponential moving average with the bias of its start taken out; `weight` from 0 to 1 is how much stays of the past. */
export function smoothed(values, weight) {
    if (!weight) return values;
    let average = 0;
    let mass = 0;
    return values.map((value) => {
        if (value === null) return null;
        average = weight * average + (1 - weight) * value;
        mass = weight * mass + (1 - weight);
        return average / mass;
    });
}
