/** Who answers: one chooser a pane, and whether its model is there. */
import { html } from '../../core/html.js';
import { gigabytes } from '../../core/format.js';
import { model } from '../../core/live.js';
import { Badge } from '../../components/feedback.js';
import { Icon } from '../../components/icon.js';
import { keyOf, labelOf } from './choices.js';

const MOST = 4;

export function PaneHeads({ session, choices }) {
    const { panes } = session.state.value;
    const change = (at, pane) => session.set({ panes: panes.map((old, place) => (place === at ? pane : old)) });
    const add = () => session.set({ panes: [...panes, panes[0].adapter_path ? { ...panes[0], adapter_path: null } : (choices.find((item) => item.pane.adapter_path)?.pane ?? panes[0])] });
    return html`<div class="pane-heads panes" style=${columnsOf(panes)}>
        ${panes.map((pane, at) => html`<div class="pane-head" key=${at}>
            <label class="grow"><span class="hidden">Model of pane ${at + 1}</span>
                <${Chooser} pane=${pane} choices=${choices} onChange=${(chosen) => change(at, chosen)} /></label>
            <${LoadState} pane=${pane} />
            ${panes.length > 1 && html`<button class="bare" aria-label=${`Close pane ${at + 1}`} disabled=${session.isAnswering} onClick=${() => session.set({ panes: panes.filter((_, place) => place !== at) })}><${Icon} name="close" size=${16} /></button>`}
            ${at === panes.length - 1 && panes.length < MOST && html`<button class="bare" title="Ask another model beside" aria-label="Ask another model beside" disabled=${session.isAnswering} onClick=${add}><${Icon} name="plus" size=${16} /></button>`}
        </div>`)}
    </div>`;
}

export const columnsOf = (panes) => ({ gridTemplateColumns: `repeat(${panes.length}, minmax(0, 1fr))` });

function Chooser({ pane, choices, onChange }) {
    const groups = [...new Set(choices.map((item) => item.group))];
    const isListed = choices.some((item) => item.key === keyOf(pane));
    return html`<select value=${keyOf(pane)} onChange=${(event) => onChange(choices.find((item) => item.key === event.target.value)?.pane ?? pane)}>
        ${!isListed && html`<option value=${keyOf(pane)} selected>${labelOf(pane)}</option>`}
        ${groups.map((group) => html`<optgroup key=${group} label=${group}>${choices.filter((item) => item.group === group).map((item) => html`<option key=${item.key} value=${item.key} selected=${item.key === keyOf(pane)}>${item.label}</option>`)}</optgroup>`)}
    </select>`;
}

function LoadState({ pane }) {
    const status = model.value;
    if (status && !status.running) return html`<${Badge} tone="bad">server off<//>`;
    const held = status?.models?.find((item) => keyOf(item) === keyOf(pane));
    if (!held) return html`<span class="quiet small-text nowrap">loads when asked</span>`;
    if (held.error) return html`<${Badge} tone="bad">failed<//>`;
    return held.loaded ? html`<${Badge} tone="good">${held.memory_usage_gb === null ? 'ready' : gigabytes(held.memory_usage_gb)}<//>` : html`<${Badge} tone="busy">loading<//>`;
}
