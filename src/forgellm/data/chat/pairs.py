"""Rows of preference data: one beginning, and after it a chosen and a rejected answer.

Known are `prompt`, `chosen` and `rejected` as text or as lists of turns, `chosen` and `rejected` as
whole conversations with the same beginning, and the transcripts of Anthropic's HH (`Human:` and
`Assistant:` in one text).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from forgellm.data.bulk_encoder import TOKEN_BYTES
from forgellm.data.chat.encoding import (
    Asking,
    ChatFormat,
    ConversationEncoder,
    Entry,
    RowEncoder,
    text_bytes,
)
from forgellm.data.chat.rows import (
    Conversation,
    RowRefused,
    json_list,
    turns_of,
    until_last_answer,
)
from forgellm.data.chat.template import Turn
from forgellm.data.chat.tokens import Run, Tokens
from forgellm.data.tokenizer import Tokenizer

_PROMPTS = ("prompt", "question", "instruction", "query", "input")
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant): ?")


@dataclass(frozen=True)
class Pair:
    """Two conversations whose first `num_shared` turns are the same; what follows is answers."""

    chosen: Conversation
    rejected: Conversation
    num_shared: int


def pair_of(row: Any, columns: Mapping[str, str] | None = None) -> Pair:
    """The pair of a row. `columns` maps prompt, chosen, rejected or system to names.

    Raises RowRefused.
    """
    if not isinstance(row, dict):
        raise RowRefused("not an object")
    names = {name.lower(): name for name in row} | dict(columns or {})
    found = {role: row.get(names.get(role, role)) for role in ("chosen", "rejected", "system")}
    if found["chosen"] is None or found["rejected"] is None:
        raise RowRefused("no pair: chosen and rejected are not both there")
    prompt = next((row[names[name]] for name in _PROMPTS if row.get(names.get(name, ""))), None)
    tools = json_list(row.get("tools"))
    chosen, rejected = (
        Conversation(_turns(prompt, found["system"], found[side]), tools)
        for side in ("chosen", "rejected")
    )
    return Pair(chosen, rejected, _num_shared(chosen.turns, rejected.turns))


def _turns(prompt: Any, system: Any, answer: Any) -> list[Turn]:
    """The whole conversation that ends with `answer`."""
    said = _said(answer, prompt is None)
    first = next((turn["role"] for turn in said if turn["role"] != "system"), None)
    if first != "user":
        asked = _items(prompt)
        said = [*(_one("user", prompt) if asked is None else turns_of(asked)), *said]
    if system and said and said[0]["role"] != "system":
        said = [*_one("system", system), *said]
    return until_last_answer(said)


def _said(answer: Any, is_whole: bool) -> list[Turn]:
    """Turns of an answer, which may come with all that was said before it (`is_whole`: must)."""
    items = _items(answer)
    if items is not None:
        return turns_of(items)
    if is_whole and isinstance(answer, str) and answer.lstrip().startswith("Human:"):
        _, *parts = _TRANSCRIPT.split("\n\n" + answer.lstrip())
        roles = {"Human": "user", "Assistant": "assistant"}
        turns = zip(parts[::2], parts[1::2], strict=True)
        return turns_of([{"role": roles[who], "content": text} for who, text in turns])
    return _one("assistant", answer)


def _items(value: Any) -> list[Any] | None:
    """The turns of a list, also of one that a table holds as text; None for what is plain text."""
    items = [value] if isinstance(value, dict) else json_list(value)
    return items if items and all(isinstance(item, dict) for item in items) else None


def _one(role: str, content: Any) -> list[Turn]:
    return turns_of([{"role": role, "content": content}])


def _num_shared(chosen: list[Turn], rejected: list[Turn]) -> int:
    """Raises RowRefused unless the two part where the assistant answers."""
    if chosen == rejected:
        raise RowRefused("chosen and rejected are the same")
    both = zip(chosen, rejected, strict=False)
    count = next((n for n, (a, b) in enumerate(both) if a != b), min(len(chosen), len(rejected)))
    parting = [turns[count]["role"] for turns in (chosen, rejected) if count < len(turns)]
    if parting != ["assistant", "assistant"]:
        raise RowRefused("chosen and rejected do not answer the same question")
    return count


class PairEncoder(RowEncoder):
    """Rows that hold a pair: its two conversations stand one after the other. Learned are the
    assistant's turns after the shared beginning.
    """

    def _encode(self, row: Any) -> Asking[Entry]:
        pair = pair_of(row, self._form.columns)
        chosen, rejected = yield from self._tokens(pair)
        is_cut = not self._fits(chosen, rejected)
        if is_cut:
            chosen, rejected = yield from self._cut(pair)
        if not any(chosen.trained[1:]) or not any(rejected.trained[1:]):
            raise RowRefused("nothing in it to learn")
        return Entry(
            Tokens(chosen.ids + rejected.ids, chosen.trained + rejected.trained),
            # Pairs of the same question would tell of each other across the split.
            chosen.ids[: TOKEN_BYTES * chosen.trained.index(True)],
            text_bytes(pair.chosen.turns) + text_bytes(pair.rejected.turns),
            is_cut,
            rejected_at=len(chosen.trained),
        )

    def _cut(self, pair: Pair) -> Asking[tuple[Tokens, Tokens]]:
        """Without as few as possible of the first turns after the system's, from a question on."""
        turns = pair.chosen.turns[: pair.num_shared]
        kept = 1 if turns[0]["role"] == "system" else 0
        starts = [n for n, turn in enumerate(turns) if turn["role"] == "user" and n > kept]
        fitting: tuple[Tokens, Tokens] | None = None
        low, high = 0, len(starts)
        while low < high:
            middle = (low + high) // 2
            found = yield from self._tokens(_without(pair, kept, starts[middle]))
            if self._fits(*found):
                fitting, high = found, middle
            else:
                low = middle + 1
        if fitting is None:
            raise RowRefused(
                f"its last question and answers take over {self._form.max_tokens} tokens"
            )
        return fitting

    def _fits(self, chosen: Tokens, rejected: Tokens) -> bool:
        return len(chosen.trained) + len(rejected.trained) <= self._form.max_tokens

    def _tokens(self, pair: Pair) -> Asking[tuple[Tokens, Tokens]]:
        chosen = yield self._runs(pair.chosen, pair.num_shared)
        rejected = yield self._runs(pair.rejected, pair.num_shared)
        return chosen, rejected

    def _runs(self, conversation: Conversation, num_shared: int) -> list[Run]:
        num_answers = sum(turn["role"] == "assistant" for turn in conversation.turns[num_shared:])
        return self._chat.runs(conversation, num_answers)


def row_encoder(tokenizer: Tokenizer, form: ChatFormat) -> RowEncoder:
    """The encoder for the rows of a format. Raises TemplateRefused if the template is broken."""
    return (PairEncoder if form.in_pairs else ConversationEncoder)(tokenizer, form)


def _without(pair: Pair, first: int, end: int) -> Pair:
    """The pair without the turns from `first` to `end`, which both conversations share."""
    chosen, rejected = (
        replace(side, turns=side.turns[:first] + side.turns[end:])
        for side in (pair.chosen, pair.rejected)
    )
    return Pair(chosen, rejected, pair.num_shared - (end - first))
