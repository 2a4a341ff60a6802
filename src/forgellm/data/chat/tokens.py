"""Conversations as token ids, and which of them are learned: the assistant's, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from forgellm.data.bulk_encoder import TOKEN_BYTES
from forgellm.data.chat.layout import Layout, LossOn, layout_of
from forgellm.data.chat.rows import Conversation, RowRefused
from forgellm.data.chat.shown import Shown
from forgellm.data.chat.template import (
    ChatTemplate,
    Shape,
    TemplateRefused,
    Turn,
    shape_of,
    without_system_turns,
)
from forgellm.data.chat.turn_ends import turn_ends
from forgellm.data.tokenizer import Tokenizer

_MAX_LAYOUTS = 1000


class Tokens(NamedTuple):
    """A conversation's tokens.

    Attributes:
        ids: of T tokens, TOKEN_BYTES each.
        trained: T bytes, 1 for a token that is to be predicted, else 0.
    """

    ids: bytes
    trained: bytes


class Run(NamedTuple):
    """Text of a conversation that is encoded together.

    Attributes:
        with_controls: whether control tokens may be in it.
        is_trained: whether its tokens are to be predicted.
    """

    text: str
    with_controls: bool
    is_trained: bool


class ChatRuns:
    """Renders conversations of any shape. Raises TemplateRefused if the template is broken.

    Rendering each once more for every answer, to find where that begins, would take longer than to
    encode it; so the layout of a shape is remembered.
    """

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, template)
        self._ends = turn_ends(tokenizer, template)
        self._shown = Shown(self._template)
        self._known_layout = lru_cache(maxsize=_MAX_LAYOUTS)(self._layout)

    def fitted(self, conversation: Conversation) -> Conversation:
        """See `Shown.fitted`."""
        return self._shown.fitted(conversation)

    def runs(self, conversation: Conversation, loss_on: LossOn | int) -> list[Run]:
        """`loss_on` may be how many of the last answers are learned. Raises RowRefused where the
        template does not take the conversation."""
        every = [n for n, turn in enumerate(conversation.turns) if turn["role"] == "assistant"]
        never = frozenset(k for k, n in enumerate(every) if n in conversation.context_only)
        for attempt in (conversation.turns, without_system_turns(conversation.turns)):
            try:
                return self._runs(attempt, conversation.tools, loss_on, never)
            except TemplateRefused as error:
                reason = str(error)
        raise RowRefused(f"the chat template refuses it: {reason[:200]}")

    def _runs(
        self,
        turns: list[Turn],
        tools: list[Any] | None,
        loss_on: LossOn | int,
        context_only: frozenset[int],
    ) -> list[Run]:
        self._require_safe_tools(turns, tools)
        shape, texts = shape_of(turns)
        has_calls = tools is not None or any("tool_calls" in turn for turn in turns)
        if has_calls or not self._template.is_timeless:
            layout = self._layout(shape, loss_on, context_only, tools)
        else:
            layout = self._known_layout(shape, loss_on, context_only)
        found = [
            Run(text, with_controls, is_trained)
            for is_trained, parts in layout
            for text, with_controls in self._template.runs(parts, texts)
        ]
        rendered = self._template.render(turns, for_answer=False, tools=tools)
        if "".join(run.text for run in found) != rendered:
            raise RowRefused("the chat template changes the text of turns")
        return found

    def _layout(
        self,
        shape: Shape,
        loss_on: LossOn | int,
        context_only: frozenset[int],
        tools: list[Any] | None = None,
    ) -> Layout:
        return layout_of(shape, tools, loss_on, self._template, self._ends, context_only)

    def _require_safe_tools(self, turns: list[Turn], tools: list[Any] | None) -> None:
        """What a template writes of tools by itself cannot be told from its own words."""
        written = [tools, *(turn.get("tool_calls") for turn in turns)]
        names = [turn[key] for turn in turns for key in ("name", "tool_call_id") if key in turn]
        if not names and not any(written):
            return
        if self._template.spells_control_tokens(orjson.dumps([written, names]).decode()):
            raise RowRefused("a tool spells a control token")


def chat_tokens(conversations: list[list[Run]], tokenizer: Tokenizer) -> list[Tokens]:
    """Of each conversation. All are encoded at once, which takes half the time of one by one."""
    encoded: dict[bool, Iterator[bytes]] = {}
    for with_controls in (True, False):
        texts = [
            run.text for runs in conversations for run in runs if run.with_controls is with_controls
        ]
        encoded[with_controls] = iter(
            tokenizer.encode_batch(texts, with_controls=with_controls) if texts else ()
        )
    found = []
    for runs in conversations:
        ids = [next(encoded[run.with_controls]) for run in runs]
        marks = [
            bytes([run.is_trained]) * (len(part) // TOKEN_BYTES)
            for run, part in zip(runs, ids, strict=True)
        ]
        found.append(Tokens(b"".join(ids), b"".join(marks)))
    return found
