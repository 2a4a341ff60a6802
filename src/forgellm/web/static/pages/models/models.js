/** What is here, what it can be made into, and what was made from what. */
import { html, useState } from '../../core/html.js';
import { runsChanged } from '../../core/live.js';
import { useResource } from '../../core/resource.js';
import { setQuery } from '../../core/router.js';
import { Tabs } from '../../components/controls.js';
import { Icon } from '../../components/icon.js';
import { Combine } from './combine.js';
import { Exports } from './exports.js';
import { HubDownload } from './hub_download.js';
import { InMemory } from './in_memory.js';
import { List, readModels } from './list.js';
import { Tree } from './tree.js';
import { Work } from './work.js';

export const title = 'Models';
const TABS = [
    { id: 'models', label: 'Models' },
    { id: 'exports', label: 'For other programs' },
    { id: 'tree', label: 'What came from what' },
];

export function View({ query }) {
    const [numMade, setNumMade] = useState(0);
    const found = useResource(readModels, [runsChanged.value, numMade]);
    const [open, setOpen] = useState(query.hub === undefined ? '' : 'hub');
    const close = () => { setOpen(''); found.reload(); };
    const tab = query.tab ?? 'models';
    return html`<div class="page">
        <div class="page-head"><h1>Models</h1>
            <button onClick=${() => setOpen('combine')}>Combine adapters</button>
            <button onClick=${() => setOpen('hub')}><${Icon} name="download" /> From the hub</button></div>
        <${InMemory} />
        <${Work} onMade=${() => setNumMade(numMade + 1)} />
        <${Tabs} label="Models and what was made of them" tabs=${TABS} chosen=${tab} onChange=${(id) => setQuery({ tab: id === 'models' ? null : id })} />
        <div role="tabpanel" aria-labelledby=${`tab-${tab}`}>
            ${tab === 'models' && html`<${List} found=${found} />`}
            ${tab === 'exports' && html`<${Exports} numMade=${numMade} />`}
            ${tab === 'tree' && html`<${Tree} numMade=${numMade} />`}
        </div>
        ${open === 'hub' && html`<${HubDownload} onClose=${close} />`}
        ${open === 'combine' && html`<${Combine} onClose=${close} />`}
    </div>`;
}
