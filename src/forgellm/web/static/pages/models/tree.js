/** What was made from what: base, run, checkpoint, published, quantised; with the commands that would make each again. */
import { html } from '../../core/html.js';
import { api } from '../../core/api.js';
import { time } from '../../core/format.js';
import { runsChanged } from '../../core/live.js';
import { useResource } from '../../core/resource.js';
import { address } from '../../core/router.js';
import { CopyButton } from '../../components/controls.js';
import { Badge, Empty, Shown } from '../../components/feedback.js';

const TONES = { run: 'info', checkpoint: 'quiet', base: 'quiet', cached: 'quiet', missing: 'warn' };

export function Tree({ numMade }) {
    const found = useResource(() => api.modelsTree(), [runsChanged.value, numMade]);
    return html`<${Shown} resource=${found} what="Reading the notes">${({ members }) => {
        if (!members.length) return html`<${Empty} title="Nothing here yet"><p>Models, runs and what is made of them appear here.</p><//>`;
        const known = new Set(members.map((member) => member.name));
        const roots = members.filter((member) => !member.made_from.some((name) => known.has(name)));
        return html`<div class="card"><${Branches} members=${roots} all=${members} above=${[]} /></div>`;
    }}<//>`;
}

/** What was made of several things stands below each. `above` keeps a circle in the notes from going on for ever. */
function Branches({ members, all, above }) {
    return html`<ul class="tree">${members.map((member) => {
        const made = all.filter((other) => other.made_from.includes(member.name) && !above.includes(other.name));
        return html`<li key=${member.name}><${Member} member=${member} />
            ${made.length > 0 && html`<${Branches} members=${made} all=${all} above=${[...above, member.name]} />`}</li>`;
    })}</ul>`;
}

function Member({ member }) {
    const others = member.made_from.length > 1 ? `, of ${member.made_from.join(' and ')}` : '';
    return html`<div class="row">
        <span class="grow">${nameOf(member)} <${Badge} tone=${TONES[member.kind] ?? 'good'}>${member.kind}<//>
            <span class="quiet small-text"> ${member.created_at ? time(member.created_at) : ''}${others}</span></span>
        ${member.command && html`<${CopyButton} label="Copy command" text=${member.command} />`}
    </div>`;
}

function nameOf({ kind, name }) {
    if (kind !== 'run' && kind !== 'checkpoint') return html`<span class="member">${name}</span>`;
    const run = name.split('/').slice(1).join('/').split('@')[0];
    return html`<a class="member" href=${address('runs', run)}>${name}</a>`;
}
