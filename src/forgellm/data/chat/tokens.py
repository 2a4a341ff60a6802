"""A conversation as token ids, and which of them are learned: the assistant's, exactly.

The assistant's part of a turn begins where a prompt for it would end, and ends with the control
token that ends the turn. Both are found by rendering, so that no template needs markers for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import orjson

from forgellm.data.chat.rows import Conversation, RowRefused
from forgellm.data.chat.template import ChatTemplate, Piece, TemplateRefused, without_system_turns
from forgellm.data.tokenizer import Tokenizer

LossOn = Literal["assistant", "last", "all"]
"""All answers, the last one, or every token."""


class Tokens(NamedTuple):
    """A conversation's tokens; `trained` says of each whether it is to be predicted."""

    ids: list[int]
    trained: list[bool]


class _Part(NamedTuple):
    """Text that is encoded together. `start` and `end` count characters of the conversation."""

    piece: Piece
    start: int
    end: int


def chat_tokens(
    conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate, loss_on: LossOn | int
) -> Tokens:
    """`loss_on` may be how many of the last answers are learned. Raises RowRefused where the template does not take the conversation."""
    for attempt in (conversation.turns, without_system_turns(conversation.turns)):
        try:
            return _chat_tokens(attempt, conversation.tools, tokenizer, template, loss_on)
        except TemplateRefused as error:
            reason = str(error)
    raise RowRefused(f"the chat template refuses it: {reason[:200]}")


def _chat_tokens(
    turns: list[dict[str, Any]],
    tools: list[Any] | None,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    loss_on: LossOn | int,
) -> Tokens:
    _require_safe_tools(turns, tools, template)
    pieces = template.pieces(turns, for_answer=False, tools=tools)
    text = "".join(piece.text for piece in pieces)
    if text != template.render(turns, for_answer=False, tools=tools):
        raise RowRefused("the chat template changes the text of turns")
    if loss_on == "all":
        spans = [(0, len(text))]
    else:
        answers = [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]
        if loss_on != "assistant":
            answers = answers[-1 if loss_on == "last" else -loss_on :]
        spans = [_span(n, turns, tools, pieces, text, tokenizer, template) for n in answers]
    ids: list[int] = []
    trained: list[bool] = []
    for is_trained, group in _cut(pieces, spans):
        found = template.ids(group)
        ids += found
        trained += [is_trained] * len(found)
    return Tokens(ids, trained)


def _span(
    number: int,
    turns: list[dict[str, Any]],
    tools: list[Any] | None,
    pieces: list[Piece],
    text: str,
    tokenizer: Tokenizer,
    template: ChatTemplate,
) -> tuple[int, int]:
    """Where the assistant's part of turn `number` begins and ends in `text`."""
    before = template.pieces(turns[:number], for_answer=True, tools=tools)
    prompt = "".join(piece.text for piece in before)
    parts = _placed(pieces)
    own = [part for part in parts if part.piece.turn == number]
    if text.startswith(prompt):
        start = len(prompt)
    elif own:
        start = own[0].start
    else:
        raise RowRefused("the chat template hides where an answer begins")
    said = own[-1].end if own else start
    others = (p.start for p in parts if p.piece.turn not in (None, number) and p.start >= said)
    following = next(others, len(text))
    ends = [
        place + len(token)
        for token in tokenizer.stop_tokens
        if (place := text.find(token, said, following)) >= 0
    ]
    return start, min(ends, default=said if own else following)


def _placed(pieces: Sequence[Piece]) -> list[_Part]:
    parts, position = [], 0
    for piece in pieces:
        parts.append(_Part(piece, position, position + len(piece.text)))
        position += len(piece.text)
    return parts


def _cut(pieces: Sequence[Piece], spans: list[tuple[int, int]]) -> list[tuple[bool, list[Piece]]]:
    """Neighbouring pieces that are all inside the spans, or all outside; cut at their borders."""
    borders = sorted({border for span in spans for border in span})
    groups: list[tuple[bool, list[Piece]]] = []
    for part in _placed(pieces):
        inner = [border for border in borders if part.start < border < part.end]
        for start, end in zip([part.start, *inner], [*inner, part.end], strict=True):
            inside = any(first <= start and end <= last for first, last in spans)
            text = part.piece.text[start - part.start : end - part.start]
            if not groups or groups[-1][0] != inside:
                groups.append((inside, []))
            groups[-1][1].append(Piece(text, part.piece.turn))
    return groups


def _require_safe_tools(
    turns: list[dict[str, Any]], tools: list[Any] | None, template: ChatTemplate
) -> None:
    """What a template writes of tools by itself cannot be told from its own words."""
    written = [tools, *(turn.get("tool_calls") for turn in turns)]
    names = [turn[key] for turn in turns for key in ("name", "tool_call_id") if key in turn]
    if template.spells_control_tokens(orjson.dumps([written, names]).decode()):
        raise RowRefused("a tool spells a control token")
