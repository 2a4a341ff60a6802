/** Curves with points at different places, over one axis. */

/**
 * @param {Array<{curve: Record<string, Array<number | null>>}>} runs
 * @param {string} axis the column of each curve that lies along the axis
 * @param {(curve: any) => Array<number | null>} valuesOf
 * @returns {{x: number[], series: Array<Array<number | null>>}} null where a run has no point
 */
export function joinedCurves(runs, axis, valuesOf) {
    const maps = runs.map(({ curve }) => {
        const values = valuesOf(curve);
        const points = new Map();
        curve[axis].forEach((x, at) => values[at] !== null && points.set(x, values[at]));
        return points;
    });
    const x = [...new Set(maps.flatMap((points) => [...points.keys()]))].sort((a, b) => a - b);
    return { x, series: maps.map((points) => x.map((at) => points.get(at) ?? null)) };
}
