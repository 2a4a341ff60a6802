/** Numbers, sizes and times as people read them. Unknown values are an en dash, never invented. */

export const NOTHING = '–';

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);

/** 12345 -> 12,345 */
export function count(value) {
    return isNumber(value) ? whole.format(value) : NOTHING;
}

/** 1234567 -> 1.2M */
export function short(value) {
    return isNumber(value) ? compact.format(value) : NOTHING;
}

/** `digits` after the point; very small and very large figures in scientific notation. */
export function figure(value, digits = 3) {
    if (!isNumber(value)) return NOTHING;
    const size = Math.abs(value);
    if (size !== 0 && (size < 10 ** -digits || size >= 1e6)) return value.toExponential(2).replace('e+', 'e');
    return value.toFixed(digits);
}

/** A learning rate: 5e-5 */
export function rate(value) {
    if (!isNumber(value)) return NOTHING;
    return value === 0 ? '0' : value.toExponential(1).replace('.0e', 'e').replace('e+', 'e');
}

export function percent(share, digits = 0) {
    return isNumber(share) ? `${(100 * share).toFixed(digits)} %` : NOTHING;
}

/** Decimal: 1 GB is 10^9 bytes, as everywhere in ForgeLLM. */
export function gigabytes(value) {
    if (!isNumber(value)) return NOTHING;
    if (value < 0.0005) return `${whole.format(value * 1e6)} kB`;
    return value < 1 ? `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} MB` : `${value.toFixed(value < 10 ? 2 : 1)} GB`;
}

export const megabytes = (value) => gigabytes(isNumber(value) ? value / 1000 : value);

/** 83.5 -> 1 h 24 min; under a minute in seconds */
export function minutes(value) {
    if (!isNumber(value)) return NOTHING;
    if (value < 1) return `${Math.round(value * 60)} s`;
    if (value < 60) return `${value < 10 ? value.toFixed(1) : Math.round(value)} min`;
    const hours = Math.floor(value / 60);
    if (hours < 48) return `${hours} h ${Math.round(value % 60)} min`;
    return `${Math.round(hours / 24)} days`;
}

/** An ISO time as this machine's clock shows it. */
export function time(iso) {
    if (!iso) return NOTHING;
    const date = new Date(iso);
    const sameDay = date.toDateString() === new Date().toDateString();
    const options = sameDay
        ? { hour: '2-digit', minute: '2-digit' }
        : { year: 'numeric', month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit' };
    return date.toLocaleString('en-GB', /** @type {any} */ (options));
}

/** "3 minutes ago" */
export function ago(iso) {
    if (!iso) return NOTHING;
    const seconds = (Date.parse(iso) - Date.now()) / 1000;
    const steps = [['day', 86400], ['hour', 3600], ['minute', 60]];
    const words = new Intl.RelativeTimeFormat('en', { numeric: 'auto' });
    for (const [unit, size] of steps) {
        if (Math.abs(seconds) >= Number(size)) {
            return words.format(Math.round(seconds / Number(size)), /** @type {any} */ (unit));
        }
    }
    return 'just now';
}

/** The last part of a path or hub id. */
export function baseName(path) {
    return String(path ?? '').split('/').filter(Boolean).at(-1) ?? '';
}

/** 1 run, 2 runs */
export function plural(number, noun, nouns = `${noun}s`) {
    return `${count(number)} ${number === 1 ? noun : nouns}`;
}

/** Names of which some come more than once: 2 × H200, L40S */
export function counted(names) {
    return [...new Set(names)].map((name) => {
        const times = names.filter((other) => other === name).length;
        return times > 1 ? `${times} × ${name}` : name;
    }).join(', ');
}

/** What a phase is called, and the tone it has. */
export const PHASES = {
    queued: ['waiting', 'quiet'],
    preparing: ['preparing', 'busy'],
    training: ['training', 'busy'],
    evaluating: ['evaluating', 'busy'],
    saving: ['saving', 'busy'],
    completed: ['completed', 'good'],
    stopped: ['stopped', 'quiet'],
    failed: ['failed', 'bad'],
    interrupted: ['interrupted', 'warn'],
};

export const isActive = (phase) => PHASES[phase]?.[1] === 'busy';
