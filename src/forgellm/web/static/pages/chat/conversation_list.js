/** Conversations on the server's disk: find, rename, delete, import, export. */
import { html, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { ago, plural } from '../../core/format.js';
import { useResource, useRested } from '../../core/resource.js';
import { address, navigate } from '../../core/router.js';
import { confirmed } from '../../components/dialog.js';
import { Problem, toast, toastError } from '../../components/feedback.js';
import { Icon } from '../../components/icon.js';

export function ConversationList({ current, changed, onPick }) {
    const [wanted, setWanted] = useState('');
    const rested = useRested(wanted);
    const found = useResource(() => api.listConversations({ q: rested || undefined, limit: 100 }), [rested, changed]);
    const remove = async (item) => {
        if (!(await confirmed({ title: 'Delete this conversation?', text: `“${item.title || 'Untitled'}” and all its branches. This cannot be taken back.`, action: 'Delete for good', danger: true }))) return;
        await api.deleteConversation(item.id).then(() => {
            found.reload();
            if (item.id === current) navigate(`/chat?new=${Date.now()}`);
        }, toastError);
    };
    const take = async (event) => {
        const file = event.target.files[0];
        event.target.value = '';
        if (!file) return;
        try {
            const { imported } = await api.importConversations(rowsOf(await file.text()));
            toast(`${plural(imported.length, 'conversation')} imported`);
            found.reload();
        } catch (error) {
            toastError(error);
        }
    };
    return html`<nav class="chat-list" aria-label="Conversations">
        <label><span class="hidden">Search conversations</span><input type="search" placeholder="Search conversations" value=${wanted} onInput=${(event) => setWanted(event.target.value)} /></label>
        ${found.error && html`<${Problem} error=${found.error} onRetry=${found.reload} />`}
        <ul>${(found.data?.conversations ?? []).map((item) => html`<li key=${item.id} class=${item.id === current ? 'current' : ''}>
            <a href=${address('chat', item.id)} aria-current=${item.id === current ? 'page' : undefined} onClick=${onPick}><span class="cut block">${item.title || 'Untitled'}</span><span class="quiet small-text">${ago(item.updated_at)}</span></a>
            <button class="bare" aria-label=${`Delete ${item.title || 'Untitled'}`} onClick=${() => remove(item)}><${Icon} name="trash" size=${14} /></button>
        </li>`)}</ul>
        ${found.data?.conversations.length === 0 && html`<p class="quiet small-text">${rested ? 'None has that in it.' : 'What you ask is kept here.'}</p>`}
        <div class="row list-foot"><a class="button small" href="/api/conversations/export" download="conversations.jsonl">Export</a>
            <label class="button small file-button">Import<input type="file" accept=".jsonl,.json" onChange=${take} /></label></div>
    </nav>`;
}

/** JSON lines, or one JSON list. Throws Error. */
function rowsOf(text) {
    try {
        return text.trim().startsWith('[') ? JSON.parse(text) : text.split('\n').filter((line) => line.trim()).map((line) => JSON.parse(line));
    } catch {
        throw new Error('The file is not JSON lines');
    }
}
