/** Talk to a model, or to several side by side; conversations are kept on the server. */
import { html, useEffect, useMemo, useState } from '../../core/html.js';
import { api } from '../../core/api.js';
import { useResource } from '../../core/resource.js';
import { address, navigate } from '../../core/router.js';
import { Empty, Loading, Problem } from '../../components/feedback.js';
import { Icon } from '../../components/icon.js';
import { Composer } from './composer.js';
import { ConversationList } from './conversation_list.js';
import { useChoices } from './choices.js';
import { PaneHeads } from './pane_heads.js';
import { newConversation, Session } from './session.js';
import { Settings } from './settings.js';
import { Thread } from './thread.js';

export const title = 'Chat';

export function View({ name, query }) {
    const found = useResource(async () => (name ? (await api.getConversation(name)).conversation : begin(query)), [name, query.run, query.model, query.beside, query.new]);
    const [isListOpen, setListOpen] = useState(false);
    const [isSettingsOpen, setSettingsOpen] = useState(false);
    const [changed, setChanged] = useState(0);
    // Saving gives a new conversation its address; that is not another one.
    const session = useMemo(() => (found.data ? new Session(found.data) : null), [found.data]);
    useEffect(() => {
        if (!session) return;
        session.onCreated = (id) => {
            history.replaceState(null, '', address('chat', id));
            setChanged((before) => before + 1);
        };
        return () => session.stop();
    }, [session]);
    return html`<div class=${`chat ${isListOpen ? 'list-open' : ''} ${isSettingsOpen ? 'settings-open' : ''}`}>
        <${ConversationList} current=${name || session?.state.value.id} changed=${changed} onPick=${() => setListOpen(false)} />
        <section class="chat-main" aria-label="Conversation">
            <header class="chat-head">
                <button class="bare" aria-label="Conversations" aria-expanded=${isListOpen} onClick=${() => setListOpen(!isListOpen)}><${Icon} name="menu" /></button>
                <h1 class="cut grow">${session?.state.value.title || 'New conversation'}</h1>
                <a class="button small" href=${`/chat?new=${Date.now()}`}><${Icon} name="plus" size=${14} /> New</a>
                <button class="small" aria-expanded=${isSettingsOpen} onClick=${() => setSettingsOpen(!isSettingsOpen)}>Settings</button>
            </header>
            ${found.error ? html`<div class="page"><${Problem} error=${found.error} onRetry=${() => navigate('/chat')} /></div>`
                : !session ? html`<div class="page"><${Loading} /></div>`
                : html`<${Opened} session=${session} />`}
        </section>
        ${isSettingsOpen && session && html`<${Settings} session=${session} onClose=${() => setSettingsOpen(false)} />`}
    </div>`;
}

function Opened({ session }) {
    const choices = useChoices();
    const hasModel = session.state.value.panes.some((pane) => pane.model_name);
    if (choices.data && !choices.data.length) {
        return html`<div class="page"><${Empty} title="No model to talk to"><p>Bring one to this machine, or train one.</p><a class="button primary" href="/models">Models</a><//></div>`;
    }
    return html`<${PaneHeads} session=${session} choices=${choices.data ?? []} />
        <${Thread} session=${session} />
        <${Composer} session=${session} canSend=${hasModel} />`;
}

/** A new conversation with what the address names, else with what is loaded, else with what was used last. */
async function begin(query) {
    if (query.run) {
        const [run, iteration] = query.run.split('@');
        const tuned = await paneOfRun(run, iteration);
        return newConversation(query.beside === 'base' || !iteration ? [{ model_name: tuned.model_name, adapter_path: null }, tuned] : [tuned]);
    }
    if (query.model) return newConversation([{ model_name: query.model, adapter_path: null }]);
    const { models } = await api.modelStatus().catch(() => ({ models: [] }));
    const loaded = models.findLast((item) => item.loaded || item.is_loading);
    if (loaded) return newConversation([{ model_name: loaded.model_name, adapter_path: loaded.adapter_path }]);
    const known = (await api.searchModels('')).models.filter((item) => ['base', 'cached', 'published'].includes(item.kind));
    return newConversation([{ model_name: known[0]?.path ?? known[0]?.name ?? null, adapter_path: null }]);
}

async function paneOfRun(name, iteration) {
    const { run } = await api.getRun(name);
    return { model_name: run.model_name, adapter_path: iteration ? `${run.output_dir}@${iteration}` : run.output_dir };
}
