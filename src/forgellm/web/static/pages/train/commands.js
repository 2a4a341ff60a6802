/** The same run without the page. */
import { html } from '../../core/html.js';
import { commandOf, curlOf, yamlOf } from '../../core/recipe.js';
import { kept } from '../../core/settings.js';
import { CopyButton, saveFile, Tabs } from '../../components/controls.js';

const chosen = kept('commandTab', 'command');
const TABS = [{ id: 'command', label: 'Command' }, { id: 'curl', label: 'curl' }, { id: 'yaml', label: 'YAML' }];
const TEXTS = { command: commandOf, curl: curlOf, yaml: yamlOf };

export function Commands({ recipe }) {
    const text = (TEXTS[chosen.value] ?? commandOf)(recipe);
    return html`<section class="card stack"><h2>The same without this page</h2>
        <${Tabs} label="Form" tabs=${TABS} chosen=${chosen.value} onChange=${(id) => (chosen.value = id)} />
        <pre class="code wrap" tabindex="0" role="tabpanel" aria-labelledby=${`tab-${chosen.value}`}>${text}</pre>
        <div class="row"><${CopyButton} text=${text} />${chosen.value === 'yaml' && html`<button type="button" class="small" onClick=${() => saveFile('run.yaml', text, 'application/yaml')}>Save</button>`}</div>
    </section>`;
}
