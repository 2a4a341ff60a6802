"""Rows of preference data: one beginning, and after it a chosen and a rejected answer.

Which columns hold what is found among the shapes of `shapes.py`. Each answer is a text, a turn, a
list of turns, or a whole conversation from its first turn on.
"""

from __future__ import annotations

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
    nothing_to_learn,
    text_bytes,
)
from forgellm.data.chat.rows import (
    Conversation,
    Row,
    conversation_of,
    costs_only_its_row,
    require_open,
    transcript_of,
)
from forgellm.data.chat.shapes import HH, PREFERENCES, Part, Shape
from forgellm.data.chat.template import Turn
from forgellm.data.chat.tokens import Run
from forgellm.data.chat.turns import Notes, RowRefused, Spoken, said, tools_of
from forgellm.data.span_encoder import Tokens
from forgellm.data.tokenizer import Tokenizer

_PARTS: Mapping[str, Part] = {"prompt": "asked", "chosen": "chosen", "rejected": "rejected", "system": "system"}  # fmt: skip


_ASKED: tuple[Part, ...] = ("asked", "before", "after", "history")


@dataclass(frozen=True)
class Pair:
    """Two conversations whose first `num_shared` turns are the same; what follows is answers.

    Attributes:
        notes: what of the row is not used.
    """

    chosen: Conversation
    rejected: Conversation
    num_shared: int
    notes: tuple[str, ...] = ()


@costs_only_its_row
def pair_of(row: Any, columns: Mapping[str, str] | None = None) -> Pair:
    """The pair of a row. `columns` maps prompt, chosen, rejected or system to names.

    Raises RowRefused.
    """
    found = Row(_unwrapped(row))
    found.refuse_known()
    shapes = PREFERENCES
    if columns:
        named = {_PARTS[role]: name for role, name in columns.items()}
        found.require(named)
        shapes = (PREFERENCES[0].named(named),)
    shape = found.shape_among(shapes)
    if shape is None:
        raise RowRefused(
            "no pair: chosen and rejected are not both there" + _learned_otherwise(row)
        )
    asked = found.with_system(shape, found.question(shape))
    answers = _answers(found, shape, is_whole=not asked)
    if _are_whole(answers):
        system = [item for item in asked[:1] if item.turn["role"] == "system"]
        whole = [_with(system, answer) for answer in answers]
        question = asked[len(system) :]
        if any(answer[_start(answer) :][: len(question)] != question for answer in whole):
            found.give_back(shape, _ASKED)
        if any(answer[: len(system)] != system for answer in whole):
            found.give_back(shape, ("system",))
    else:
        require_open(asked)
        whole = [[*asked, *answer] for answer in answers]
    tools = tools_of(found.take(shape, "tools"))
    chosen, rejected = (Conversation.of(spoken, tools, found.notes) for spoken in whole)
    num_shared = _num_shared(chosen.turns, rejected.turns)
    return Pair(chosen, rejected, num_shared, tuple(found.all_notes()))


def _learned_otherwise(row: Any) -> str:
    """What another method makes of a row that holds no pair."""
    try:
        conversation_of(row)
    except RowRefused as error:
        _, semicolon, other = str(error).partition("; plain text is ")
        return semicolon + other
    return "; a conversation is learned with training_type ift"


def _unwrapped(row: Any) -> Any:
    """OpenAI's files have the question's messages, and the tools, in an object of their own."""
    if (
        isinstance(row, dict)
        and isinstance(inner := row.get("input"), dict)
        and "messages" in inner
    ):
        return {name: value for name, value in row.items() if name != "input"} | inner
    return row


def _answers(row: Row, shape: Shape, *, is_whole: bool) -> list[list[Spoken]]:
    """The better and the worse answer."""
    parts = {column.part for column in shape.needs}
    if "preference" not in parts:
        values = row.take(shape, "chosen"), row.take(shape, "rejected")
    else:
        values = row.take(shape, "first"), row.take(shape, "second")
        preference = row.take(shape, "preference")
        if isinstance(preference, bool) or not isinstance(preference, (int, float)):
            raise RowRefused("the preference is not a number")
        if not abs(preference) > 0:
            raise RowRefused("neither answer is preferred")
        values = values if preference < 0 else values[::-1]
    return [_answer(value, row.notes, is_whole) for value in values]


def _answer(value: Any, notes: Notes, is_whole: bool) -> list[Spoken]:
    """Turns of an answer, which may come with all that was said before it (`is_whole`: must)."""
    if is_whole and isinstance(value, str) and value.lstrip().startswith("Human:"):
        transcript = transcript_of(value, [HH])
        if transcript is not None:
            return transcript
    return said(value, "assistant", notes)


def _are_whole(answers: list[list[Spoken]]) -> bool:
    """Whether the answers come with the question, rather than after it."""
    roles = [item.turn["role"] for item in answers[0] if item.turn["role"] != "system"]
    return roles[:1] == ["user"]


def _with(system: list[Spoken], whole: list[Spoken]) -> list[Spoken]:
    return whole if _start(whole) else [*system, *whole]


def _start(spoken: list[Spoken]) -> int:
    """How many turns of the system come first."""
    return int(bool(spoken) and spoken[0].turn["role"] == "system")


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
        fitted = self._chat.fitted(pair.chosen), self._chat.fitted(pair.rejected)
        pair = replace(pair, chosen=fitted[0], rejected=fitted[1])
        chosen, rejected = yield from self._tokens(pair)
        is_cut = not self._fits(chosen, rejected)
        if is_cut:
            chosen, rejected = yield from self._cut(pair)
        for side, tokens in ((pair.chosen, chosen), (pair.rejected, rejected)):
            if not any(tokens.trained[1:]):
                raise nothing_to_learn(side)
        return Entry(
            Tokens(chosen.ids + rejected.ids, chosen.trained + rejected.trained),
            # Pairs of the same question would tell of each other across the split.
            chosen.ids[: TOKEN_BYTES * chosen.trained.index(True)],
            text_bytes(pair.chosen.turns) + text_bytes(pair.rejected.turns),
            is_cut,
            notes=tuple(dict.fromkeys((*pair.notes, *pair.chosen.notes, *pair.rejected.notes))),
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
    chosen, rejected = (side.without(first, end) for side in (pair.chosen, pair.rejected))
    return Pair(chosen, rejected, pair.num_shared - (end - first), pair.notes)
