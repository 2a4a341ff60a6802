/** The charts on the page as one picture, with their titles and what each colour means. */
import { saveFile } from '../../components/controls.js';

const MARGIN = 24;
const LINE = 20;

export function savePicture(fileName, names) {
    const charts = [...document.querySelectorAll('.compared .chart')];
    const canvases = charts.map((chart) => /** @type {HTMLCanvasElement} */ (chart.querySelector('canvas')));
    const scale = canvases[0].width / canvases[0].clientWidth;
    const width = Math.max(...canvases.map((canvas) => canvas.width)) + 2 * MARGIN * scale;
    const heights = canvases.map((canvas) => canvas.height + 2 * LINE * scale);
    const picture = document.createElement('canvas');
    picture.width = width;
    picture.height = heights.reduce((sum, height) => sum + height, 0) + (names.length * LINE + 2 * MARGIN) * scale;
    const ctx = /** @type {CanvasRenderingContext2D} */ (picture.getContext('2d'));
    const style = getComputedStyle(document.body);
    ctx.fillStyle = getComputedStyle(/** @type {Element} */ (charts[0].closest('.card'))).backgroundColor;
    ctx.fillRect(0, 0, picture.width, picture.height);
    ctx.textBaseline = 'middle';
    let y = MARGIN * scale;
    charts.forEach((chart, at) => {
        ctx.fillStyle = style.color;
        ctx.font = `600 ${14 * scale}px sans-serif`;
        ctx.fillText(chart.querySelector('.chart-title')?.textContent ?? '', MARGIN * scale, y);
        ctx.drawImage(canvases[at], MARGIN * scale, y + LINE * scale);
        y += heights[at];
    });
    names.forEach((name, at) => {
        const swatch = /** @type {Element} */ (document.querySelector(`.legend .color-${at + 1}`));
        ctx.fillStyle = getComputedStyle(swatch).color;
        ctx.fillRect(MARGIN * scale, y - 2 * scale, 18 * scale, 4 * scale);
        ctx.fillStyle = style.color;
        ctx.font = `${13 * scale}px sans-serif`;
        ctx.fillText(name, (MARGIN + 26) * scale, y);
        y += LINE * scale;
    });
    picture.toBlob((blob) => blob && saveFile(fileName, blob));
}
