/** Line icons, drawn in a 24 x 24 box. They stand beside words and are hidden from screen readers. */
import { html } from '../core/html.js';

const PATHS = {
    start: 'M4 11 12 4l8 7v9h-5v-6H9v6H4z',
    train: 'M5 20V9m7 11V4m7 16v-7',
    runs: 'M3 17l5-6 4 3 8-9M3 21h18',
    compare: 'M3 18c5 0 5-12 10-12h8M3 6c5 0 5 12 10 12h8',
    chat: 'M4 5h16v11H9l-5 4z',
    models: 'M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9',
    data: 'M4 6c0-3 16-3 16 0v12c0 3-16 3-16 0zM4 6c0 3 16 3 16 0M4 12c0 3 16 3 16 0',
    close: 'M6 6l12 12M18 6L6 18',
    menu: 'M4 7h16M4 12h16M4 17h16',
    sun: 'M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2m0 16v2M2 12h2m16 0h2M5 5l1.5 1.5m11 11L19 19M19 5l-1.5 1.5m-11 11L5 19',
    moon: 'M20 14A8 8 0 0 1 10 4a8 8 0 1 0 10 10z',
    screen: 'M3 5h18v11H3zM8 20h8',
    copy: 'M9 9h11v11H9zM5 15H4V4h11v1',
    check: 'M5 12l5 5 9-10',
    trash: 'M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5m4-5v5',
    play: 'M7 4l13 8-13 8z',
    stop: 'M6 6h12v12H6z',
    send: 'M4 12l16-8-5 16-4-6z',
    edit: 'M4 20l1-5L16 4l4 4L9 19z',
    again: 'M20 12a8 8 0 1 1-3-6l3 2M20 3v5h-5',
    left: 'M15 5l-7 7 7 7',
    right: 'M9 5l7 7-7 7',
    down: 'M5 9l7 7 7-7',
    plus: 'M12 5v14M5 12h14',
    upload: 'M12 16V4m-5 5l5-5 5 5M4 20h16',
    download: 'M12 4v12m-5-5l5 5 5-5M4 20h16',
    search: 'M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l5 5',
    warn: 'M12 4l9 16H3zM12 10v4m0 3v.5',
    info: 'M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 11v6m0-9.5v.5',
    star: 'M12 3l2.7 5.8 6.3.7-4.7 4.3 1.3 6.2-5.6-3.2L6.4 20l1.3-6.2L3 9.500l6.300-.700z',
    file: 'M6 3h8l4 4v14H6zM14 3v4h4',
    folder: 'M3 6h6l2 2h10v11H3z',
};

/** @param {{name: keyof typeof PATHS, size?: number}} props */
export function Icon({ name, size = 18 }) {
    return html`<svg class="icon" width=${size} height=${size} viewBox="0 0 24 24" aria-hidden="true" focusable="false">
        <path d=${PATHS[name]} />
    </svg>`;
}
