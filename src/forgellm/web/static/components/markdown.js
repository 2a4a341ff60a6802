/**
 * Text of models, files and the hub as formatted text. All of it is hostile: markdown without raw
 * HTML, then DOMPurify, then the page's content policy, each of which would be enough alone.
 */
import { html, useEffect, useRef } from '../core/html.js';

/** Loaded when first needed: the page starts without them. */
let parser = /** @type {any} */ (null);
let highlighter = /** @type {any} */ (null);

async function parserLoaded() {
    if (!parser) {
        const { default: MarkdownIt } = await import('markdown-it');
        parser = new MarkdownIt({ html: false, linkify: true, breaks: true });
        // A picture would be a request to wherever the text says.
        parser.disable('image');
    }
    return parser;
}

const purifier = globalThis.DOMPurify;
const ALLOWED = {
    ALLOWED_TAGS: ['p', 'br', 'hr', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'strong', 'em', 's', 'code', 'pre', 'blockquote',
        'ul', 'ol', 'li', 'a', 'table', 'thead', 'tbody', 'tr', 'th', 'td'],
    ALLOWED_ATTR: ['href', 'class', 'start', 'align'],
    ALLOWED_URI_REGEXP: /^https?:\/\//i,
    RETURN_TRUSTED_TYPE: true,
};
purifier.addHook('afterSanitizeAttributes', (node) => {
    if (node.tagName === 'A') {
        node.setAttribute('target', '_blank');
        node.setAttribute('rel', 'noreferrer noopener');
    }
});

/** @param {{text: string, isComplete?: boolean}} props while a text still grows, code is not coloured */
export function Markdown({ text, isComplete = true }) {
    const ref = useRef(/** @type {HTMLElement | null} */ (null));
    useEffect(() => {
        let isCurrent = true;
        if (!parser && ref.current) ref.current.textContent = text;
        parserLoaded().then(async (markdown) => {
            if (!isCurrent || !ref.current) return;
            ref.current.innerHTML = purifier.sanitize(markdown.render(text), ALLOWED);
            if (isComplete) await colour(ref.current, () => isCurrent);
        });
        return () => void (isCurrent = false);
    }, [text, isComplete]);
    return html`<div class="markdown" ref=${ref}></div>`;
}

/** Colour code blocks that name a language we know. */
async function colour(element, isCurrent) {
    const blocks = element.querySelectorAll('pre > code[class*="language-"]');
    if (!blocks.length) return;
    highlighter ??= (await import('highlight.js')).default;
    if (!isCurrent()) return;
    for (const block of blocks) {
        const language = [...block.classList].find((name) => name.startsWith('language-'))?.slice(9);
        if (!highlighter.getLanguage(language)) continue;
        const { value } = highlighter.highlight(block.textContent, { language, ignoreIllegals: true });
        block.innerHTML = purifier.sanitize(value, { ALLOWED_TAGS: ['span'], ALLOWED_ATTR: ['class'], RETURN_TRUSTED_TYPE: true });
    }
}
