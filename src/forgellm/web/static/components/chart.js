/**
 * Line charts over uPlot (canvas: 100,000 points are no burden).
 *
 * Drag across to zoom, double-click to see everything again. Charts with the same `group` show their
 * cursors together and zoom together. A figure that is null is a gap, unless the series is sparse.
 */
import { html, useEffect, useRef } from '../core/html.js';
import { count, figure } from '../core/format.js';
import { theme } from '../core/settings.js';

const UPlot = globalThis.uPlot;

const HEIGHT = 240;
const NUM_COLORS = 8;

/**
 * @typedef {{label: string, values: Array<number | null>, color?: number, dashed?: boolean, points?: boolean, faint?: boolean, sparse?: boolean}} Series
 *     `color`: 1 to 8, as theme.css numbers them. `sparse`: few values among nulls, joined by lines.
 * @param {{title: string, x: number[], series: Series[], xLabel?: string, xFormat?: (value: number) => string, isLog?: boolean, group?: string, height?: number, format?: (value: number) => string, marks?: Array<{x: number, label: string}>}} props
 */
export function Chart({ title, x, series, xLabel = 'iteration', xFormat = count, isLog = false, group, height = HEIGHT, format = figure, marks = [] }) {
    const box = useRef(/** @type {HTMLElement | null} */ (null));
    const chart = useRef(/** @type {any} */ (null));
    const shape = JSON.stringify([series.map((s) => [s.label, s.color, s.dashed, s.points, s.faint, s.sparse]), isLog, group, height, theme.value, marks, xLabel]);

    useEffect(() => {
        const element = /** @type {HTMLElement} */ (box.current);
        const plot = new UPlot(options({ series, isLog, group, height, format, xFormat, marks, width: element.clientWidth }), dataOf(x, series), element);
        chart.current = plot;
        const watcher = new ResizeObserver(() => plot.setSize({ width: element.clientWidth, height }));
        watcher.observe(element);
        return () => {
            watcher.disconnect();
            plot.destroy();
        };
    }, [shape]);

    useEffect(() => {
        const plot = chart.current;
        // Who has zoomed in keeps the view while new points come.
        plot.setData(dataOf(x, series), !plot.isZoomed);
        if (plot.isZoomed) plot.redraw();
    }, [x, series]);

    return html`<figure class="chart">
        <figcaption><span class="chart-title">${title}</span><${Legend} series=${series} format=${format} /></figcaption>
        <div ref=${box} class="chart-canvas" role="img" aria-label=${spoken(title, x, series, xLabel, xFormat, format)} style=${{ height: `${height}px` }}></div>
    </figure>`;
}

function Legend({ series, format }) {
    return html`<ul class="legend">${series.filter((s) => !s.faint).map(
        (s, number) => html`<li key=${s.label}><span class=${`swatch color-${s.color ?? number + 1} ${s.dashed ? 'dashed' : ''}`}></span>${s.label} <b>${format(lastOf(s.values))}</b></li>`,
    )}</ul>`;
}

/** What a chart says to those who do not see it. */
function spoken(title, x, series, xLabel, xFormat, format) {
    if (!x.length) return `${title}: no values yet`;
    const lines = series.filter((s) => !s.faint).map((s) => {
        const known = s.values.filter((value) => value !== null);
        if (!known.length) return `${s.label}: no values`;
        return `${s.label}: from ${format(known[0])} to ${format(known.at(-1))}`;
    });
    return `${title} over ${x.length} points, ${xLabel} ${xFormat(x[0])} to ${xFormat(x.at(-1))}. ${lines.join('. ')}`;
}

const lastOf = (values) => values.findLast((value) => value !== null && value !== undefined);

const dataOf = (x, series) => [x, ...series.map((s) => s.values)];

function options({ series, isLog, group, height, format, xFormat, marks, width }) {
    const colors = palette();
    const axis = { stroke: colors.quiet, grid: { stroke: colors.line, width: 1 }, ticks: { stroke: colors.line, width: 1 }, font: colors.font };
    return {
        width, height,
        legend: { show: false },
        cursor: { sync: group ? { key: group, setSeries: false } : undefined, drag: { x: true, y: false }, points: { size: 7 } },
        scales: { x: { time: false }, y: { distr: isLog ? 3 : 1, range: isLog ? undefined : padded } },
        axes: [{ ...axis, size: 36, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? xFormat(tick) : '')) }, { ...axis, size: 58, values: (_, ticks) => ticks.map((tick) => (tick === null ? '' : format(tick))) }],
        series: [{}, ...series.map((s, number) => lineOf(s, number, colors))],
        plugins: [tooltip(series, format, xFormat), ...(marks.length ? [verticals(marks, colors)] : []), zoom(group)],
    };
}

function lineOf(s, number, colors) {
    const color = colors.series[((s.color ?? number + 1) - 1) % NUM_COLORS];
    return {
        label: s.label,
        stroke: s.faint ? `${color}44` : color,
        width: s.faint ? 1 : 1.75,
        dash: s.dashed ? [6, 4] : undefined,
        points: { show: Boolean(s.points), size: 6, fill: color, stroke: color },
        spanGaps: Boolean(s.sparse),
    };
}

/** A little room above and below; a constant curve is not a picture of noise. */
function padded(_, low, high) {
    if (low === null || high === null) return [0, 1];
    const room = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
    return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

function palette() {
    const style = getComputedStyle(document.documentElement);
    const named = (name) => resolved(style.getPropertyValue(name).trim());
    return {
        quiet: named('--text-quiet'),
        line: named('--line'),
        font: `11px ${style.getPropertyValue('--font')}`,
        series: Array.from({ length: NUM_COLORS }, (_, index) => named(`--series-${index + 1}`)),
    };
}

/** Canvas does not know light-dark(); the browser works it out for an element. */
function resolved(color) {
    const probe = document.createElement('span');
    probe.style.color = color;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    const [r, g, b] = (found.match(/[\d.]+/g) ?? []).map(Number);
    return '#' + [r, g, b].map((part) => Math.round(part).toString(16).padStart(2, '0')).join('');
}

/** The values under the cursor, beside it. */
function tooltip(series, format, xFormat) {
    const tip = document.createElement('div');
    tip.className = 'chart-tip';
    tip.hidden = true;
    const line = (text, value) => {
        const row = document.createElement('div');
        row.textContent = value === undefined ? text : `${text}: ${value}`;
        return row;
    };
    return {
        hooks: {
            init: (plot) => plot.over.append(tip),
            setCursor: (plot) => {
                const { idx, left } = plot.cursor;
                tip.hidden = idx === null || idx === undefined || left < 0;
                if (tip.hidden) return;
                const rows = series.map((s, number) => [s, plot.data[number + 1][idx]]).filter(([s, value]) => !s.faint && value !== null && value !== undefined);
                tip.replaceChildren(line(xFormat(plot.data[0][idx])), ...rows.map(([s, value]) => line(s.label, format(value))));
                const isRight = left > plot.over.clientWidth / 2;
                tip.style.left = isRight ? '' : `${left + 12}px`;
                tip.style.right = isRight ? `${plot.over.clientWidth - left + 12}px` : '';
            },
        },
    };
}

/** Vertical lines at what is worth knowing, such as the best checkpoint. */
function verticals(marks, colors) {
    return {
        hooks: {
            draw: (plot) => {
                const { ctx, bbox } = plot;
                ctx.save();
                ctx.strokeStyle = ctx.fillStyle = colors.quiet;
                ctx.setLineDash([4, 4]);
                ctx.font = colors.font;
                ctx.textBaseline = 'alphabetic';
                for (const mark of marks) {
                    const at = Math.round(plot.valToPos(mark.x, 'x', true));
                    if (at < bbox.left || at > bbox.left + bbox.width) continue;
                    ctx.beginPath();
                    ctx.moveTo(at, bbox.top);
                    ctx.lineTo(at, bbox.top + bbox.height);
                    ctx.stroke();
                    const isAtTheEdge = at > bbox.left + bbox.width - 60;
                    ctx.textAlign = isAtTheEdge ? 'right' : 'left';
                    ctx.fillText(mark.label, at + (isAtTheEdge ? -4 : 4), bbox.top + 12);
                }
                ctx.restore();
            },
        },
    };
}

/** group -> its charts */
const groups = new Map();

/** Remembers whether somebody zoomed in, and lets a group's charts zoom as one. */
function zoom(group) {
    const others = (plot) => [...(groups.get(group) ?? [])].filter((other) => other !== plot);
    return {
        hooks: {
            init: (plot) => {
                if (group) groups.set(group, (groups.get(group) ?? new Set()).add(plot));
                plot.over.addEventListener('dblclick', () => {
                    for (const each of [plot, ...others(plot)]) {
                        each.isZoomed = false;
                        each.setData(each.data, true);
                    }
                });
            },
            destroy: (plot) => groups.get(group)?.delete(plot),
            setSelect: (plot) => {
                if (plot.select.width === 0) return;
                const min = plot.posToVal(plot.select.left, 'x');
                const max = plot.posToVal(plot.select.left + plot.select.width, 'x');
                plot.isZoomed = true;
                for (const other of others(plot)) {
                    other.isZoomed = true;
                    other.setScale('x', { min, max });
                }
            },
        },
    };
}
