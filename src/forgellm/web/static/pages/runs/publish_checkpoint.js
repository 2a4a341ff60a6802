/** A checkpoint becomes a model of its own. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { AskedForm } from '../../components/asked_form.js';
import { Dialog } from '../../components/dialog.js';
import { Choice } from '../../components/field.js';

const TYPES = [
    { value: 'stored', label: "The base's own type", hint: 'The sum of base and adapter is rounded to it; a small adapter can lose a little.' },
    { value: 'float32', label: 'float32', hint: 'Exactly what was trained, in twice the space of 16 bits.' },
];

/** @param {{run: any, item: any, onBegun: (reply: any) => void, onClose: () => void}} props `item` is a checkpoint of `run` */
export function PublishCheckpoint({ run, item, onBegun, onClose }) {
    const [dtype, setDtype] = useState('stored');
    const ask = () => api.publishCheckpoint(item.path, run.output_dir, { dtype, async: true }).then(onBegun);
    return html`<${Dialog} title=${`Publish checkpoint ${item.iteration}`} onClose=${onClose}><${AskedForm} action="Publish" onDone=${onClose} ask=${ask}>
        <p class="quiet">It is merged into its base, compared with base plus adapter, and lands in <code>models/published/</code> with a model card and a dashboard.</p>
        <${Choice} label="Weights are stored in" value=${dtype} options=${TYPES} onChange=${setDtype} />
        <p class="quiet">${TYPES.find((type) => type.value === dtype)?.hint}</p>
    <//><//>`;
}
