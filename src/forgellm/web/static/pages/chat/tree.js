/**
 * A conversation as a tree: an edit or another try is a sibling, nothing is lost. Pure functions.
 *
 * The path from the leaf to the root alternates user and assistant messages; where several models
 * answer side by side, the path goes over the first pane's answers, and the answers of the other
 * panes are their siblings, told apart by `pane`.
 *
 * @typedef {{id: string, parent: string | null, role: 'user' | 'assistant', content: string, pane?: number,
 *     model_name?: string | null, adapter_path?: string | null, created_at: string, figures?: any, scores?: any}} Message
 * @typedef {{messages: Message[], leaf: string | null}} Tree
 */

/** @param {Tree} tree @returns {Message[]} from the first message to the leaf */
export function pathOf(tree) {
    const byId = new Map(tree.messages.map((message) => [message.id, message]));
    const path = [];
    for (let at = byId.get(tree.leaf ?? ''); at; at = byId.get(at.parent ?? '')) path.unshift(at);
    return path;
}

/** The exchanges along the path: each question, and for each pane its answer, the newest unless one was chosen. */
export function exchangesOf(tree, numPanes) {
    const path = pathOf(tree);
    return path.filter((message) => message.role === 'user').map((question) => ({
        question,
        answers: Array.from({ length: numPanes }, (_, pane) => answerOf(tree, path, question.id, pane)),
    }));
}

function answerOf(tree, path, questionId, pane) {
    const answers = answersOf(tree, questionId, pane);
    return answers.find((answer) => path.includes(answer)) ?? answers.at(-1);
}

/** All that a pane has answered to a question. */
export function answersOf(tree, questionId, pane) {
    return tree.messages.filter((message) => message.parent === questionId && message.role === 'assistant' && (message.pane ?? 0) === pane);
}

/** Messages in the place of `message`: itself, and its other versions. */
export function siblingsOf(tree, message) {
    if (message.role === 'assistant') return answersOf(tree, message.parent, message.pane ?? 0);
    return tree.messages.filter((other) => other.role === 'user' && other.parent === message.parent);
}

/** What a pane's model has seen before a question: `[{role, content}]`, without answers it has not given. */
export function historyOf(tree, numPanes, questionId, pane) {
    const history = [];
    for (const { question, answers } of exchangesOf(tree, numPanes)) {
        if (question.id === questionId) break;
        history.push({ role: 'user', content: question.content });
        if (answers[pane]) history.push({ role: 'assistant', content: answers[pane].content });
    }
    return history;
}

/** The tree with `message` added; a question becomes the leaf, and so does a first pane's answer to the leaf. */
export function withMessage(tree, message) {
    const continues = message.role === 'user' || ((message.pane ?? 0) === 0 && isOnPath(tree, message.parent));
    return { ...tree, messages: [...tree.messages, message], leaf: continues ? message.id : tree.leaf };
}

const isOnPath = (tree, id) => pathOf(tree).some((message) => message.id === id);

/** The tree with its leaf below `message`: going to another version goes to where that one ended. */
export function turnedTo(tree, message) {
    let leaf = message.id;
    for (;;) {
        const below = tree.messages.filter((other) => other.parent === leaf && (other.pane ?? 0) === 0);
        if (!below.length) return { ...tree, leaf };
        leaf = below.at(-1).id;
    }
}

/** Where a new question goes: below the first pane's last answer, or below the last question if there is none. */
export const placeOfNext = (tree) => tree.leaf;

/** Thinking blocks apart from the answer; one that has not ended yet is all thinking. */
export function splitThinking(text) {
    const start = text.match(/^\s*<think(?:ing)?>/);
    if (!start) return { thinking: '', answer: text, isThinking: false };
    const rest = text.slice(start[0].length);
    const end = rest.match(/<\/think(?:ing)?>/);
    if (!end) return { thinking: rest, answer: '', isThinking: true };
    return { thinking: rest.slice(0, end.index), answer: rest.slice(Number(end.index) + end[0].length).trimStart(), isThinking: false };
}
