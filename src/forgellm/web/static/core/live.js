/**
 * What the server says by itself: runs, jobs and the loaded model, over Socket.IO.
 *
 * Updates are gathered and handed on once per frame, so that a fast run cannot keep the page busy.
 */
import { api } from './api.js';
import { batch, signal } from './html.js';

/** 'connecting' | 'online' | 'offline' */
export const connection = signal('connecting');

/** The model server's status, null until it was heard of. */
export const model = signal(/** @type {any} */ (null));

/** job_id -> job: all that the server keeps, the oldest first. */
export const jobs = signal(new Map());

/** The newest event of the run that trains or trained last, null before any. */
export const currentRun = signal(/** @type {any} */ (null));

/** Counts the ends and beginnings of runs, for what must be asked for again then. */
export const runsChanged = signal(0);

const RUN_EVENTS = ['training_update', 'training_complete', 'training_error', 'evaluation_update'];

/** @typedef {{event: string, training_id: string, seq: number, phase: string, [field: string]: any}} RunEvent */

/** training_id -> those who follow it, each with the last seq it was handed */
const followers = new Map();
const waiting = [];
const waitingJobs = new Map();
let frame = 0;

const socket = globalThis.io({ transports: ['websocket', 'polling'] });

/**
 * Follow a run: `onEvents` gets lists of its events, at most one list per frame, what was missed
 * while the connection was down included.
 * @param {string} trainingId
 * @param {number | undefined} sinceSeq the last seq already known
 * @param {(events: RunEvent[]) => void} onEvents
 * @returns {() => void} stops following
 */
export function followRun(trainingId, sinceSeq, onEvents) {
    const follower = { onEvents, seq: sinceSeq };
    const others = followers.get(trainingId) ?? new Set();
    followers.set(trainingId, others.add(follower));
    if (socket.connected) subscribe(trainingId, sinceSeq);
    return () => {
        others.delete(follower);
        if (others.size > 0) return;
        followers.delete(trainingId);
        if (socket.connected && trainingId !== currentRun.peek()?.training_id) {
            socket.emit('unsubscribe_training', { training_id: trainingId });
        }
    };
}

function subscribe(trainingId, sinceSeq) {
    const wanted = {};
    if (trainingId) wanted.training_id = trainingId;
    if (sinceSeq !== undefined) wanted.since_seq = sinceSeq;
    socket.emit('subscribe_training', wanted);
}

function handOn() {
    frame = 0;
    const events = waiting.splice(0);
    batch(() => {
        if (waitingJobs.size) {
            jobs.value = new Map([...jobs.value, ...waitingJobs]);
            waitingJobs.clear();
        }
        for (const item of events) if (item.event !== 'evaluation_update') noteCurrent(item);
        for (const [id, group] of followers) {
            const own = events.filter((item) => item.training_id === id);
            for (const follower of group) hand(follower, own);
        }
    });
}

function hand(follower, events) {
    // Two views may follow one run from different places: each gets what is new to it.
    const isNew = (item) => item.event !== 'training_update' || !(item.seq < follower.seq);
    const news = events.filter(isNew);
    if (!news.length) return;
    follower.seq = Math.max(follower.seq ?? 0, ...news.map((item) => item.seq));
    follower.onEvents(news);
}

function noteCurrent(item) {
    const before = currentRun.value;
    const isOlder = before && item.timestamp < before.timestamp && item.training_id !== before.training_id;
    if (isOlder) return;
    const isTold = before?.training_id === item.training_id && before.event === item.event;
    if (!isTold) runsChanged.value += 1;
    currentRun.value = item;
}

function later() {
    // A tab in the background has no frames, and still must not fall behind without bound.
    frame ||= document.hidden ? setTimeout(handOn, 250) : requestAnimationFrame(handOn);
}

for (const event of RUN_EVENTS) {
    socket.on(event, (data) => {
        waiting.push({ event, ...data });
        later();
    });
}
socket.on('job_update', (job) => {
    waitingJobs.set(job.job_id, job);
    later();
});
socket.on('model_update', (status) => (model.value = status));
socket.on('connect', () => {
    connection.value = 'online';
    learnJobs();
    subscribe('', undefined);
    for (const [id, group] of followers) {
        const seen = [...group].map((follower) => follower.seq ?? 0);
        subscribe(id, Math.min(...seen));
    }
});

/** Those that were begun before this page was opened, or while it was cut off. */
async function learnJobs() {
    const known = await api.listJobs().catch(() => null); // the next connection asks again
    if (known) jobs.value = new Map(known.jobs.reverse().map((job) => [job.job_id, job]));
}
socket.on('disconnect', () => (connection.value = 'offline'));
socket.on('connect_error', () => (connection.value = 'offline'));
