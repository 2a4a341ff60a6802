/** Files dropped or chosen become a dataset of the workspace. One after the other, each with its progress. */
import { html, useState } from '../../core/html.js';
import { api, shown } from '../../core/api.js';
import { megabytes, plural } from '../../core/format.js';
import { ProgressBar } from '../../components/controls.js';
import { Dialog } from '../../components/dialog.js';
import { Notice } from '../../components/feedback.js';
import { TextField } from '../../components/field.js';
import { Icon } from '../../components/icon.js';

export function Upload({ onClose, onDone, into }) {
    const [name, setName] = useState(into ?? '');
    const [files, setFiles] = useState(/** @type {File[]} */ ([]));
    const [isOver, setOver] = useState(false);
    const [done, setDone] = useState(/** @type {number | null} */ (null));
    const [refused, setRefused] = useState(/** @type {string[]} */ ([]));
    const add = (list) => setFiles((before) => [...before, ...list]);
    const drop = (event) => {
        event.preventDefault();
        setOver(false);
        add(event.dataTransfer.files);
    };
    const send = async () => {
        const problems = [];
        for (const [at, file] of files.entries()) {
            setDone(at);
            try {
                await api.uploadFile(name.trim(), file.name, file);
            } catch (error) {
                problems.push(`${file.name}: ${shown(error).message}`);
            }
        }
        setDone(null);
        setRefused(problems);
        if (!problems.length) onDone(name.trim());
        else setFiles([]);
    };
    const size = files.reduce((sum, file) => sum + file.size, 0) / 1e6;
    const isBusy = done !== null;
    return html`<${Dialog} title=${into ? `Add files to ${into}` : 'Upload a dataset'} onClose=${isBusy ? () => {} : onClose}
        footer=${html`<div class="row"><span class="grow quiet">${files.length ? `${plural(files.length, 'file')}, ${megabytes(size)}` : ''}</span>
            <button class="primary" disabled=${isBusy || !files.length || !name.trim()} onClick=${send}>Upload</button></div>`}>
        <div class="stack">
            ${!into && html`<${TextField} label="Name of the dataset" value=${name} placeholder="my_documents" onChange=${setName} />`}
            <label class=${isOver ? 'drop over' : 'drop'} onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${drop}>
                <${Icon} name="upload" size=${28} />
                <span>Drop files here, or press to choose</span>
                <span class="quiet small-text">PDF, Word, EPUB, HTML, Markdown, text, e-mail, notebooks; conversations as JSON lines, JSON, CSV or Parquet</span>
                <input type="file" multiple disabled=${isBusy} onChange=${(event) => add(event.target.files)} />
            </label>
            ${isBusy && html`<${ProgressBar} value=${(done + 1) / files.length} label="Upload" /><p class="quiet" role="status">${files[done].name}</p>`}
            ${refused.length > 0 && html`<${Notice} tone="warn"><strong>${plural(refused.length, 'file was', 'files were')} not taken; the others are in the dataset.</strong>
                <ul>${refused.map((text) => html`<li key=${text}>${text}</li>`)}</ul><button class="small" onClick=${() => onDone(name.trim())}>Go on</button><//>`}
            <ul class="plain-list file-list">${files.map((file, at) => html`<li key=${at}><span class="grow cut">${file.name}</span><span class="quiet small-text">${megabytes(file.size / 1e6)}</span>
                ${!isBusy && html`<button class="bare" aria-label=${`Take away ${file.name}`} onClick=${() => setFiles(files.filter((_, other) => other !== at))}><${Icon} name="close" size=${14} /></button>`}</li>`)}</ul>
        </div>
    <//>`;
}
