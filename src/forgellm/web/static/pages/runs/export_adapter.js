/** The adapter of a checkpoint alone, in the format of another program. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { AskedForm } from '../../components/asked_form.js';
import { Dialog } from '../../components/dialog.js';
import { Choice } from '../../components/field.js';

const FORMATS = [
    { value: 'peft', label: 'PEFT', hint: 'for transformers with peft, and for vLLM' },
    { value: 'mlx', label: 'mlx-lm', hint: 'for mlx_lm on a Mac' },
    { value: 'gguf-lora', label: 'GGUF LoRA', hint: 'for llama.cpp and Ollama, beside a GGUF of the base model' },
];

/** @param {{checkpoint: string, onBegun: (reply: any) => void, onClose: () => void}} props `checkpoint` is RUN@ITERATION */
export function ExportAdapter({ checkpoint, onBegun, onClose }) {
    const [format, setFormat] = useState('peft');
    return html`<${Dialog} title="Export the adapter alone" onClose=${onClose}><${AskedForm} action="Export" onDone=${onClose} ask=${() => api.exportModel(checkpoint, { format }).then(onBegun)}>
        <${Choice} label="Format" value=${format} options=${FORMATS} onChange=${setFormat} />
        <p class="quiet">${checkpoint}, ${FORMATS.find((item) => item.value === format)?.hint}. It is a few megabytes, needs its base model to work, and lands in <code>models/exported/</code>.</p>
    <//><//>`;
}
