"""What ends the assistant's turns under a chat template: found by rendering, not known by name.

Training learns it, answers stop at it, and whatever is made of the model names it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from forgellm.data.chat.template import (
    ChatTemplate,
    Part,
    Slot,
    TemplateRefused,
    Turn,
    shape_of,
)
from forgellm.data.tokenizer import Tokenizer

_MARK = "qzvxj"  # an argument of a tool call, to be found again in what is rendered
_USER: Turn = {"role": "user", "content": "a"}
_ANSWER: Turn = {"role": "assistant", "content": "b"}
_THOUGHTFUL: Turn = {"role": "assistant", "content": "b", "reasoning_content": "c"}
_CALLING: Turn = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "look", "arguments": {"at": _MARK}},
        }
    ],
}
_RESULT: Turn = {"role": "tool", "name": "look", "tool_call_id": "abcdefghi", "content": "d"}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks.",
            "parameters": {
                "type": "object",
                "properties": {"at": {"type": "string", "description": "What."}},
                "required": ["at"],
            },
        },
    }
]


@dataclass(frozen=True)
class TurnEnds:
    """How a chat template ends what the assistant says.

    Attributes:
        tokens: each ends an answer; that of a conversation's last answer comes first. The tokenizer
            cuts them out of any text as one token, and mostly they are control tokens.
        texts: plain text that the template writes behind answers, where no token ends them.
        warnings: sentences for who trains with this template.
    """

    tokens: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


_known: WeakKeyDictionary[Tokenizer, dict[str, TurnEnds]] = WeakKeyDictionary()


def turn_ends(tokenizer: Tokenizer, source: str) -> TurnEnds:
    """The ends of the template `source`. One that takes no conversation, or is broken, has none but
    the tokens that end any text of the model."""
    known = _known.setdefault(tokenizer, {})
    if source not in known:
        known[source] = _found(tokenizer, source)
    return known[source]


def turn_end_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The tokens that end an answer under the model's own template, with their ids."""
    source = tokenizer.chat_template
    tokens = () if source is None else turn_ends(tokenizer, source).tokens
    ids = ((token, tokenizer.token_id(token)) for token in tokens)
    return {token: number for token, number in ids if number is not None}


def stop_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    """The strings of all tokens that end an answer: of a text, and of the template's turns."""
    return tokenizer.eos_tokens | turn_end_ids(tokenizer).keys()


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of `stop_tokens`, and those that the model's files name without a token for them."""
    return tokenizer.eos_ids | set(turn_end_ids(tokenizer).values())


def stop_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Plain text at which answers in a conversation stop."""
    source = tokenizer.chat_template
    return () if source is None else turn_ends(tokenizer, source).texts


def _found(tokenizer: Tokenizer, source: str) -> TurnEnds:
    try:
        probe = _Probe(tokenizer, ChatTemplate(tokenizer, source))
    except TemplateRefused:
        probe = None
    last = probe.after([_USER, _ANSWER], 1) if probe else None
    if probe is None or last is None:
        tokens = tuple(sorted(tokenizer.eos_tokens))
        return TurnEnds(tokens, warnings=(_NOT_FOUND + _NO_PROBE,))
    earlier = probe.after([_USER, _ANSWER, _USER, _ANSWER], 1)
    tokens = probe.of_answers(last, earlier)
    if not tokens and (texts := _plain_ends(last, earlier)):
        return TurnEnds((), texts, (_PLAIN.format(texts=_shown(texts)),))
    if not tokens:
        return TurnEnds(warnings=(_NOT_FOUND + _NO_END,))
    warnings = []
    if unmarked := [token for token in tokens if token not in tokenizer.special_tokens]:
        warnings.append(_UNMARKED.format(tokens=_shown(unmarked)))
    if not probe.directly(last):
        warnings.append(_NOT_LAST.format(tokens=_shown(tokens)))
    return TurnEnds((*tokens, *probe.of_calls(tokens)), warnings=tuple(warnings))


class _Probe:
    """Small conversations, rendered to see what the template writes behind the answers."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._template = template
        added = sorted((t for t in tokenizer.added_tokens if t.strip()), key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, added)) or "(?!)")

    def after(self, turns: list[Turn], number: int) -> str | None:
        """What follows the text of turn `number`, up to the next turn's; None where the template
        refuses the turns, or does not show that text."""
        parts = self._parts(turns)
        own = _own(parts, number)
        return _words(parts[own[-1] + 1 :]) if own else None

    def directly(self, words: str) -> list[str]:
        """The tokens that `words` begin with, white space aside."""
        found, end = [], 0
        for match in self._token.finditer(words):
            if words[end : match.start()].strip():
                break
            found.append(match[0])
            end = match.end()
        return found

    def of_answers(self, last: str, earlier: str | None) -> tuple[str, ...]:
        """The tokens that end answers, by what follows the last one and an earlier one."""
        after_last = self.directly(last)
        if earlier is None:
            return tuple(after_last[:1])
        after_earlier = self.directly(earlier)
        common = []
        for a, b in zip(after_last, after_earlier, strict=False):
            if a != b:
                break
            common.append(a)
        opening = self._opening()
        while (
            len(common) > 1 and common[-1] in opening
        ):  # of a turn that the template begins anyway
            common.pop()
        if common:
            return (common[-1],)
        inside = self._inside()  # after a thought the answer only begins
        found = [*after_last[:1], *after_earlier[:1]]
        return tuple(token for token in found if token not in inside) or tuple(found)

    def of_calls(self, known: Sequence[str]) -> list[str]:
        """The tokens that end a turn which calls a tool, besides those `known`."""
        found: list[str] = []
        for turns in ([_USER, _CALLING], [_USER, _CALLING, _RESULT, _ANSWER]):
            parts = [part for part in self._parts(turns, _TOOLS) if isinstance(part, str)]
            words = next((part for part in reversed(parts) if _MARK in part), "")
            tokens = self._token.findall(words.rpartition(_MARK)[2])
            if tokens and not {*known, *found} & set(tokens):
                found.append(tokens[-1] if turns[-1] is _CALLING else tokens[0])
        return found

    def _opening(self) -> set[str]:
        """Tokens that stand before the first turn's text."""
        return set(self._token.findall(_words(self._parts([_USER, _ANSWER]))))

    def _inside(self) -> set[str]:
        """Tokens between an answer's thought and what is said then."""
        parts = self._parts([_USER, _THOUGHTFUL])
        own = _own(parts, 1)
        between = [part for part in parts[own[0] : own[-1]] if isinstance(part, str)] if own else []
        return set(self._token.findall("".join(between)))

    def _parts(self, turns: list[Turn], tools: list[Any] | None = None) -> list[Part]:
        try:
            return self._template.parts(shape_of(turns)[0], for_answer=False, tools=tools)
        except TemplateRefused:
            return []


def _own(parts: list[Part], number: int) -> list[int]:
    return [n for n, part in enumerate(parts) if isinstance(part, Slot) and part.turn == number]


def _words(parts: list[Part]) -> str:
    """The template's own words before the first turn's text in `parts`."""
    return "" if not parts or isinstance(parts[0], Slot) else parts[0]


def _plain_ends(last: str, earlier: str | None) -> tuple[str, ...]:
    """What the template writes behind every answer; else what it writes behind each kind."""
    ends = [last.rstrip(), (last if earlier is None else earlier).rstrip()]
    common = os.path.commonprefix(ends)
    if common not in ends:  # it ends in the midst of what comes next
        common = re.sub(r"\S*\Z", "", common).rstrip()
    if common.strip():
        return (common,)
    return tuple(dict.fromkeys(end for end in ends if end.strip()))


def _shown(texts: Sequence[str]) -> str:
    return " and ".join(json.dumps(text, ensure_ascii=False) for text in texts)


_NOT_FOUND = "What ends an answer was not found in the chat template"
_NO_PROBE = (
    ": it does not take a question and an answer as they are. What ends the model's texts counts as"
    " the end; see with `forgellm data inspect` whether that is learned."
)
_NO_END = (
    ", which writes nothing behind it: the model does not learn to stop, and answers run on to their"
    " limit. Use a template that ends its turns with a control token."
)
_PLAIN = (
    "The chat template ends answers with plain text ({texts}) in place of a control token. It is"
    " learned where it stands, and answers stop at it here; other programs must be told to stop at it."
)
_UNMARKED = (
    "The chat template ends answers with {tokens}, which the tokenizer does not mark as a control"
    " token: a text that spells it would end an answer too."
)
_NOT_LAST = (
    "The chat template writes no end behind the last answer of a conversation, so only those before"
    " it teach the model to stop (with {tokens})."
)
