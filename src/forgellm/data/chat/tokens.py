"""Conversations as token ids, and which of them are learned: the assistant's, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import orjson

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
from forgellm.data.span_encoder import Span, Tokens
from forgellm.data.tokenizer import Tokenizer

_MAX_LAYOUTS = 1000


class Run(NamedTuple):
    """A stretch of a conversation's text.

    Attributes:
        with_controls: whether control tokens may be in it; false where a turn's text spells one.
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
        for before, after in pairwise(found):
            if before.with_controls and after.with_controls and self._join(before, after):
                raise RowRefused("a control token reaches over an end of an answer")
        return found

    def _join(self, before: Run, after: Run) -> bool:
        return self._tokenizer.join_in_control_token(before.text, after.text)

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
    """Of each conversation the ids that the model's own tokenizer has for all of it at once. A token
    is learned if it begins in text that is: what reaches over from a prompt is the prompt's, as it is
    where the model answers.

    All are encoded together, which takes half the time of one by one.
    """
    plain = {n: runs for n, runs in enumerate(conversations) if all(r.with_controls for r in runs)}
    texts = ["".join(run.text for run in runs) for runs in plain.values()]
    spans = [list(_spans(runs)) for runs in plain.values()]
    encoded = tokenizer.encode_spans(texts, spans, with_controls=True) if texts else []
    found = dict(zip(plain, encoded, strict=True))
    for number, runs in enumerate(conversations):
        if number not in found:
            parts = [(run.text, run.with_controls) for run in runs]
            trained = [n for n, run in enumerate(runs) if run.is_trained]
            found[number] = tokenizer.encode_parts(parts, trained)
    return [found[number] for number in range(len(conversations))]


def prompt_tokens(template: ChatTemplate, tokenizer: Tokenizer, turns: Sequence[Turn]) -> list[int]:
    """Ids of a conversation up to where the model answers. Raises TemplateRefused."""
    shape, texts = shape_of(turns)
    parts = template.parts(shape, for_answer=True)
    runs = [Run(text, with_controls, False) for text, with_controls in template.runs(parts, texts)]
    rendered = template.render(turns, for_answer=True)
    if "".join(run.text for run in runs) != rendered and all(run.with_controls for run in runs):
        runs = [Run(rendered, True, False)]  # it changes texts, of which none can do harm
    (found,) = chat_tokens([runs], tokenizer)
    return [int(number) for number in np.frombuffer(found.ids, "<u4")]


def _spans(runs: list[Run]) -> Iterator[Span]:
    """Where in their text the runs are that are learned."""
    end = 0
    for run in runs:
        start, end = end, end + len(run.text)
        if run.is_trained:
            yield start, end
