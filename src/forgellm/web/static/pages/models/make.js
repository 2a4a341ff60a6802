/** What can be made of a model: fewer bits, a file for other programs, a place on the hub. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { AskedForm } from '../../components/asked_form.js';
import { Dialog } from '../../components/dialog.js';
import { CheckField, Choice, SelectField, TextField } from '../../components/field.js';

const GGUF_TYPES = [
    { value: 'Q8_0', label: 'Q8_0: 8 bits, hardly any loss' },
    { value: 'BF16', label: 'BF16: as exact as most models are stored' },
    { value: 'F16', label: 'F16' },
    { value: 'F32', label: 'F32: exact, largest' },
    { value: 'Q5_1', label: 'Q5_1: 5 bits' },
    { value: 'Q4_1', label: 'Q4_1: 4 bits' },
    { value: 'Q4_K_M', label: 'Q4_K_M: 4 bits; needs llama-quantize' },
    { value: 'Q5_K_M', label: 'Q5_K_M: 5 bits; needs llama-quantize' },
    { value: 'Q6_K', label: 'Q6_K: 6 bits; needs llama-quantize' },
];
const WAYS = {
    quantise: { label: 'Quantise', hint: 'Fewer bits for each weight: smaller, often faster', Form: Quantise },
    gguf: { label: 'Export as GGUF', hint: 'For llama.cpp, Ollama and LM Studio', Form: Gguf },
    push: { label: 'Push to the hub', hint: 'Upload it to huggingface.co', Form: Push },
};

/**
 * @param {{name: string, ways: Array<keyof typeof WAYS>, onClose: () => void}} props
 *     `name` is what the model is loaded by.
 */
export function Make({ name, ways, onClose }) {
    const [way, setWay] = useState(ways[0]);
    const { Form, hint } = WAYS[way];
    return html`<${Dialog} title=${name} onClose=${onClose}><div class="stack">
        ${ways.length > 1 && html`<${Choice} label="What to do with it" value=${way} options=${ways.map((value) => ({ value, label: WAYS[value].label }))} onChange=${setWay} />`}
        <p class="quiet">${hint}. It works in the background; the model itself stays as it is.</p>
        <${Form} key=${way} name=${name} onClose=${onClose} />
    </div><//>`;
}

function Quantise({ name, onClose }) {
    const [bits, setBits] = useState(8);
    const [groupSize, setGroupSize] = useState('64');
    return html`<${AskedForm} action="Quantise" onDone=${onClose} ask=${() => api.quantizeModel(name, { bits, group_size: Number(groupSize) })}>
        <${Choice} label="Bits for each weight" value=${bits} onChange=${setBits} options=${[{ value: 8, label: '8' }, { value: 4, label: '4' }]} />
        <${SelectField} label="Weights that share a scale" value=${groupSize} options=${['32', '64', '128']} onChange=${setGroupSize} hint="Fewer are more exact and take more space." />
    <//>`;
}

function Gguf({ name, onClose }) {
    const [type, setType] = useState('Q8_0');
    return html`<${AskedForm} action="Export" onDone=${onClose} ask=${() => api.exportModel(name, { format: 'gguf', type })}>
        <${SelectField} label="Weights are stored as" value=${type} options=${GGUF_TYPES} onChange=${setType} hint="Read back and compared with the model before it appears." />
    <//>`;
}

function Push({ name, onClose }) {
    const [repoId, setRepoId] = useState('');
    const [isPrivate, setPrivate] = useState(true);
    const push = (dryRun) => api.pushModel(name, repoId.trim(), { private: isPrivate, dry_run: dryRun });
    return html`<${AskedForm} action="Push" onDone=${onClose} disabled=${!repoId.includes('/')} ask=${() => push(false)} also=${{ label: 'Only list what would be sent', ask: () => push(true) }}>
        <${TextField} label="Repository" value=${repoId} placeholder="me/my-model" onChange=${setRepoId} hint="The server sends it with the token it finds: HF_TOKEN, or that of hf auth login." />
        <${CheckField} label="Private" value=${isPrivate} onChange=${setPrivate} hint="Only you see a new repository. You can change that on the hub later." />
    <//>`;
}
