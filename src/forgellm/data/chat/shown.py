"""What of a conversation its chat template shows. What it leaves out cannot be learned, so that is
written as the row has it, or noted, or the row is refused."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from forgellm.data.chat.rows import Conversation
from forgellm.data.chat.template import (
    ChatTemplate,
    Shape,
    Slot,
    TemplateRefused,
    Turn,
    shape_of,
    without_system_turns,
)
from forgellm.data.chat.turns import RowRefused

_MAX_SHAPES = 1000
_Fields = tuple[tuple[str, Any], ...]
_TOOLS = "the tools on offer are not used: the chat template does not show them"
_THOUGHTS = "thoughts are not used where the chat template does not show them"
_SYSTEM = "the system's text is not used: the chat template does not show it"
_NAMES = "names of who speaks are not used: the chat template does not show them"
_BESIDE = "what is said beside a tool call is not used: the chat template does not show it"


class _Left(NamedTuple):
    """What the template leaves out: a field of a turn, or the tools (`turn` None)."""

    turn: int | None
    field: str


class Shown:
    """Looks at conversations through a chat template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._known = lru_cache(maxsize=_MAX_SHAPES)(self._left_out)

    def fitted(self, conversation: Conversation) -> Conversation:
        """The conversation so that the template shows all answers whole, with notes on what else it
        does not show.

        Raises RowRefused where it leaves out turns or tool calls.
        """
        left = self._left(conversation)
        plain = _as_written(conversation, left)
        if plain is not None and self._keeps(plain):
            conversation, left = plain, self._left(plain)
        if not left:
            return conversation
        notes = dict.fromkeys(conversation.notes)
        for item in left:
            if note := _judged(conversation.turns, item):
                notes[note] = None
        return replace(conversation, notes=tuple(notes))

    def _left(self, conversation: Conversation) -> tuple[_Left, ...]:
        """Nothing where the template refuses the conversation, which is for others to say."""
        turns, tools = conversation.turns, conversation.tools
        try:
            return self._of(turns, tools)
        except TemplateRefused:
            pass
        numbers = [n for n, turn in enumerate(turns) if turn["role"] != "system"]
        try:
            left = self._of(without_system_turns(turns), tools)
        except TemplateRefused:
            return ()
        return tuple(
            item if item.turn is None else item._replace(turn=numbers[item.turn]) for item in left
        )

    def _of(self, turns: Sequence[Turn], tools: list[Any] | None) -> tuple[_Left, ...]:
        if any(turn.get("reasoning_content") == "" for turn in turns):
            # An empty thought is shown where others are.
            turns = [turn | {"reasoning_content": "x"} if turn.get("reasoning_content") == "" else turn for turn in turns]  # fmt: skip
        shape, _ = shape_of(turns)
        if tools is not None or any("tool_calls" in turn for turn in turns):
            return self._left_out(shape, tools)
        return self._known(shape)

    def _left_out(self, shape: Shape, tools: list[Any] | None = None) -> tuple[_Left, ...]:
        """Raises TemplateRefused."""
        key = secrets.token_hex(8)
        places = [
            _Left(number, name)
            for number, turn in enumerate(shape)
            for name, value in turn
            if name in ("content", "reasoning_content") and value and not isinstance(value, str)
        ]
        marked = [_with_marks(turn, f"{key}{number}") for number, turn in enumerate(shape)]
        parts = self._template.parts(
            tuple(turn for turn, _ in marked), for_answer=False, tools=_marked_tools(tools, key)
        )
        words = "".join(part for part in parts if isinstance(part, str))
        there = {part.text_number for part in parts if isinstance(part, Slot)}
        left = [place for number, place in enumerate(places) if number not in there]
        left += [
            _Left(number, field)
            for number, (_, marks) in enumerate(marked)
            for field, mark in marks
            if mark not in words
        ]
        if tools is not None and f"{key}t" not in words:
            left.append(_Left(None, "tools"))
        return tuple(left)

    def _keeps(self, conversation: Conversation) -> bool:
        """Whether the template writes all texts as they are."""
        turns, tools = conversation.turns, conversation.tools
        shape, texts = shape_of(turns)
        try:
            parts = self._template.parts(shape, for_answer=False, tools=tools)
            rendered = self._template.render(turns, for_answer=False, tools=tools)
        except TemplateRefused:
            return False
        return rendered == "".join(p.text(texts) if isinstance(p, Slot) else p for p in parts)


def _with_marks(turn: _Fields, key: str) -> tuple[_Fields, list[tuple[str, str]]]:
    """The turn with marks in place of the speaker's name and of the names and arguments of its calls,
    and each mark with the field that it stands in."""
    fields = dict(turn)
    marks: list[tuple[str, str]] = []
    if "name" in fields and fields["role"] != "tool":
        fields["name"] = f"{key}s"
        marks.append(("name", fields["name"]))
    if calls := fields.get("tool_calls"):
        fields["tool_calls"] = []
        for number, call in enumerate(calls):
            name, value = f"{key}n{number}", f"{key}v{number}"
            arguments = {key: value} if call["function"]["arguments"] else {}
            marks += [("tool_calls", mark) for mark in (name, *arguments.values())]
            function = {"name": name, "arguments": arguments}
            fields["tool_calls"].append({**call, "function": function})
    return tuple(fields.items()), marks


def _marked_tools(tools: list[Any] | None, key: str) -> list[Any] | None:
    if tools is None:
        return None
    return [
        {**tool, "function": {**tool["function"], "name": f"{key}t{number}"}}
        for number, tool in enumerate(tools)
    ]


def _as_written(conversation: Conversation, left: Sequence[_Left]) -> Conversation | None:
    """With the thoughts and calls that the template does not show where the row had them, in the
    text of the answers; None where there are none of these."""
    written = conversation.as_written or {}
    hides_tools = any(item.turn is None for item in left)
    changed = {
        item.turn
        for item in left
        if item.turn in written
        and (item.field == "reasoning_content" or (item.field == "tool_calls" and not hides_tools))
    }
    if not changed:
        return None
    turns = [
        {"role": "assistant", "content": written[number]} if number in changed else turn
        for number, turn in enumerate(conversation.turns)
    ]
    return replace(conversation, turns=turns)


def _judged(turns: Sequence[Turn], left: _Left) -> str | None:
    """A note on what is left out, if that is worth one. Raises RowRefused."""
    if left.turn is None:
        return _TOOLS
    turn = turns[left.turn]
    if left.field == "tool_calls":
        raise RowRefused("the chat template does not show tool calls")
    if left.field == "reasoning_content":
        return _THOUGHTS if turn["reasoning_content"].strip() else None
    if left.field == "name":
        return _NAMES
    if turn["role"] == "system":
        return _SYSTEM
    if "tool_calls" in turn:
        return _BESIDE
    raise RowRefused(f"the chat template does not show turns of the {turn['role']}")
