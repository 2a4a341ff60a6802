/** A recipe as a command, as curl and as a YAML file: the page can do nothing that these cannot. */

/** Lists whose items may hold a comma: the flag comes once for each. */
const ONE_A_FLAG = new Set(['probe_files', 'general_files', 'sample_prompts']);

/** Fields that were left at their defaults need not be said. */
function said(recipe) {
    const isEmpty = (value) => value === null || value === undefined || (Array.isArray(value) && value.length === 0);
    return Object.entries(recipe).filter(([, value]) => !isEmpty(value));
}

export function commandOf(recipe) {
    const flags = said(recipe).flatMap(([name, value]) => flagOf(name, value));
    return ['forgellm train', ...flags].join(' \\\n  ');
}

function flagOf(name, value) {
    const flag = name === 'model_name' ? '--model' : `--${name.replaceAll('_', '-')}`;
    if (value === true) return [flag];
    if (value === false) return [];
    if (ONE_A_FLAG.has(name)) return value.map((item) => `${flag} ${quoted(item)}`);
    if (Array.isArray(value)) return [`${flag} ${quoted(value.join(','))}`];
    if (typeof value === 'object') return [`${flag} ${quoted(Object.entries(value).map((pair) => pair.join('=')).join(','))}`];
    return [`${flag} ${quoted(value)}`];
}

function quoted(value) {
    const text = String(value);
    return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

export function curlOf(recipe) {
    const body = JSON.stringify(Object.fromEntries(said(recipe)), null, 2);
    return `curl ${location.origin}/api/training/start -H 'Content-Type: application/json' -d ${quotedBody(body)}`;
}

const quotedBody = (body) => `'${body.replaceAll("'", "'\\''")}'`;

/** JSON values are YAML values, so that nothing needs to be guessed about quoting. */
export function yamlOf(recipe) {
    return said(recipe).map(([name, value]) => `${name}: ${JSON.stringify(value)}`).join('\n') + '\n';
}
