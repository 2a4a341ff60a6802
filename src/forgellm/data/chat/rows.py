"""Which conversation a row of a dataset holds, whatever shape it comes in.

The shape is found among those of `shapes.py`, not configured; where names are unusual, a mapping
says which column is what. Each column is used, or noted as not used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, ParamSpec, TypeVar

from forgellm.data.chat.shapes import (
    BY_COLUMNS,
    CONVERSATIONS,
    HH,
    LABEL_NOTE,
    REFUSALS,
    TRANSCRIPTS,
    Column,
    Part,
    Shape,
    Transcript,
    is_label,
)
from forgellm.data.chat.template import Turn
from forgellm.data.chat.turns import (
    Notes,
    RowRefused,
    Spoken,
    exchanges_of,
    is_empty,
    is_missing,
    json_list,
    said,
    text_of,
    tool_call,
    tools_of,
    turns_of,
)

__all__ = ["Conversation", "Row", "RowRefused", "conversation_of", "costs_only_its_row"]

P = ParamSpec("P")
T = TypeVar("T")
_PARTS: Mapping[str, Part] = {"messages": "turns", "user": "asked", "assistant": "answered", "system": "system"}  # fmt: skip
_NAMES_TOLD = 8
_TRIMMED = "turns after the last answer are not used"


@dataclass(frozen=True)
class Conversation:
    """Turns as chat templates take them, the last by the assistant; `tools` if the row has some.

    Attributes:
        context_only: numbers of the turns that are answers but not to be learned.
        as_written: by number of a turn, the whole content of an answer of which thoughts or a call
            were taken apart.
        notes: what of the row is not used.
    """

    turns: list[Turn]
    tools: list[Any] | None = None
    context_only: frozenset[int] = frozenset()
    as_written: Mapping[int, str] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, spoken: Sequence[Spoken], tools: list[Any] | None, notes: Notes) -> Conversation:
        """Up to the last answer. Raises RowRefused where the assistant does not answer anything."""
        answers = [n for n, item in enumerate(spoken) if item.turn["role"] == "assistant"]
        if not answers:
            raise RowRefused("no answer of an assistant")
        if not any(item.turn["role"] in ("user", "tool") for item in spoken[: answers[-1]]):
            raise RowRefused("no question before the answer")
        if len(spoken) > answers[-1] + 1:
            notes[_TRIMMED] = None
        spoken = spoken[: answers[-1] + 1]
        return cls(
            [item.turn for item in spoken],
            tools,
            frozenset(n for n in answers if not spoken[n].is_learned),
            {n: text for n, item in enumerate(spoken) if (text := item.as_written) is not None},
            tuple(notes),
        )

    def without(self, first: int, end: int) -> Conversation:
        """Without the turns from `first` to `end`."""
        moved = {n: n if n < first else n - (end - first) for n in range(len(self.turns))}
        for gone in range(first, end):
            del moved[gone]
        written = self.as_written or {}
        return Conversation(
            [self.turns[n] for n in moved],
            self.tools,
            frozenset(moved[n] for n in self.context_only if n in moved),
            {moved[n]: text for n, text in written.items() if n in moved},
            self.notes,
        )

    def until(self, end: int) -> Conversation:
        """The turns before `end`."""
        return self.without(end, len(self.turns))


def costs_only_its_row(parse: Callable[P, T]) -> Callable[P, T]:
    """Whatever goes wrong with one row of other people's data must not end the work on the others."""

    @functools.wraps(parse)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return parse(*args, **kwargs)
        except (RowRefused, MemoryError):
            raise
        except Exception as error:
            raise RowRefused(unreadable(error)) from error

    return guarded


def unreadable(error: Exception) -> str:
    """The reason for a row on which a parser fails in a way that it does not know."""
    return f"cannot be read ({type(error).__name__})"


@costs_only_its_row
def conversation_of(row: Any, columns: Mapping[str, str] | None = None) -> Conversation:
    """The conversation of a row. `columns` maps messages, user, assistant or system to names.

    Raises RowRefused.
    """
    if isinstance(row, list):
        row = {"messages": row}
    found = Row(row)
    found.refuse_known()
    if columns:
        shape = _named(found, {_PARTS[role]: name for role, name in columns.items()})
    else:
        shape = found.shape_among(CONVERSATIONS) or found.refuse()
    spoken = [*found.conversation(shape)]
    tools = tools_of(found.take(shape, "tools"))
    return Conversation.of(spoken, tools, found.all_notes())


def _named(row: Row, columns: Mapping[Part, str]) -> Shape:
    shape = CONVERSATIONS[0] if "turns" in columns else BY_COLUMNS
    shape = shape.named(columns)
    row.require(columns)
    return shape


class Row:
    """The columns of a row, and which of them were read. Raises RowRefused where it has none."""

    def __init__(self, values: Any) -> None:
        if not isinstance(values, dict):
            raise RowRefused("not an object")
        if not all(isinstance(name, str) for name in values):
            raise RowRefused("more cells than there are columns")
        self._values: dict[str, Any] = values
        self._names: dict[str, str] = {}
        for name in values:  # of two that differ in case alone the first is read, the other noted
            self._names.setdefault(name.strip().lower(), name)
        self._read: set[str] = set()
        self.notes: Notes = {}

    def refuse_known(self) -> None:
        """Raises RowRefused for rows that must not be taken for something else."""
        names = self._names.keys()
        known = [refusal for refusal in REFUSALS if not names.isdisjoint(refusal.columns)]
        values = {name: self._values[original] for name, original in self._names.items() if known}
        for refusal in known:
            if refusal.is_one(values):
                raise RowRefused(refusal.reason)

    def refuse(self) -> NoReturn:
        names = ", ".join(repr(name[:40]) for name in list(self._names)[:_NAMES_TOLD])
        reason = f"no conversation: none of the known columns ({names or 'it has none'})"
        if "text" in self._names:
            reason += "; plain text is learned with training_type cpt"
        elif {"chosen", "rejected"} <= self._names.keys():
            reason += "; a chosen and a rejected answer are learned with training_type dpo or orpo"
        raise RowRefused(reason)

    def require(self, columns: Mapping[Part, str]) -> None:
        """Raises RowRefused if a column that a user named is not there, save the system's text,
        which not every row needs."""
        for part, name in columns.items():
            if name in self._values:
                continue
            reason = f"there is no column {name[:40]!r}, which `columns` names"
            if part != "system":
                raise RowRefused(reason)
            self.notes[reason] = None

    def shape_among(self, shapes: Sequence[Shape]) -> Shape | None:
        """The first shape whose columns all say something; else the first whose columns are there,
        so that the reason tells what is wrong with them."""
        for fits in (self._says, self._has):
            for shape in shapes:
                if all(fits(column) for column in shape.needs):
                    return shape
        return None

    def _has(self, column: Column) -> bool:
        return any(name in self._names for name in column.names)

    def _says(self, column: Column) -> bool:
        value = self._peek(column)
        if column.part == "turns":
            return bool(json_list(value))
        if column.part == "transcript":
            return isinstance(value, str) and transcript_of(value) is not None
        return not is_empty(value)

    def _peek(self, column: Column) -> Any:
        """The first value of the column's names that says something; else the first there is."""
        name = self._name_of(column)
        return None if name is None else self._values[name]

    def _name_of(self, column: Column) -> str | None:
        # A name that a user gave is meant as it is written.
        names = [n if n in self._values else self._names.get(n) for n in column.names]
        there = [name for name in names if name is not None and name not in self._read]
        return next(
            (n for n in there if not is_empty(self._values[n])), there[0] if there else None
        )

    def take(self, shape: Shape, part: Part) -> Any:
        """The value for a part of the shape, which counts as read; None where there is none."""
        return next(iter(self.take_all(shape, part)), None)

    def take_all(self, shape: Shape, part: Part) -> list[Any]:
        """As `take`, of each of the shape's columns for the part."""
        found = []
        for column in (*shape.needs, *shape.also):
            if column.part == part and (name := self._name_of(column)) is not None:
                self._read.add(name)
                found.append(self._values[name])
        return found

    def give_back(self, shape: Shape, parts: Sequence[Part]) -> None:
        """Counts the shape's columns for these parts as not read."""
        for column in shape.also:
            if column.part in parts:
                self._read -= {name for n in column.names if (name := self._names.get(n, n))}

    def conversation(self, shape: Shape) -> Iterator[Spoken]:
        """What is said in a row of the shape."""
        parts = {column.part for column in shape.needs}
        notes = self.notes
        if "turns" in parts:
            items = json_list(self.take(shape, "turns"))
            if items is None:
                raise RowRefused("the column of messages is not a list")
            yield from self.with_system(shape, turns_of(items, notes))
        elif "transcript" in parts:
            spoken = transcript_of(self.take(shape, "transcript"))
            if spoken is None:
                self.refuse()
            yield from self.with_system(shape, spoken)
        else:
            asked = self.question(shape)
            require_open(asked)
            yield from self.with_system(shape, [*asked, *self._answer(shape, parts)])

    def question(self, shape: Shape) -> list[Spoken]:
        """What is asked, with what stands in other columns before and after it, and the turns of
        the history before that."""
        value, notes = self.take(shape, "asked"), self.notes
        spoken = [] if is_empty(value) else _asked(value, notes)
        before = self._texts(shape, "before")
        after = self._texts(shape, "after")
        around = [*before, *after]
        if around and not spoken:
            spoken = said("\n\n".join(around), "user", notes)
        elif around:
            if len(spoken) > 1 or spoken[0].turn["role"] != "user":
                raise RowRefused("turns, and a text to which of them it belongs is not known")
            joined = "\n\n".join([*before, spoken[0].turn["content"], *after])
            spoken = [Spoken(spoken[0].turn | {"content": joined})]
        history = self.take(shape, "history")
        if is_empty(history):
            return spoken
        if (entries := json_list(history)) is None:
            raise RowRefused("the history is not a list")
        return [*exchanges_of(entries, notes), *spoken]

    def _texts(self, shape: Shape, part: Part) -> list[str]:
        texts = [text_of(value, "what is asked about") for value in self.take_all(shape, part)]
        return [text for text in texts if text.strip()]

    def _answer(self, shape: Shape, parts: set[Part]) -> list[Spoken]:
        if "spans" in parts:
            return said(_only_span(self.take(shape, "spans")), "assistant", self.notes)
        if "calls" in parts:
            calls = json_list(self.take(shape, "calls"))
            if not calls:
                raise RowRefused("an empty answer")
            turn = {"role": "assistant", "content": "", "tool_calls": [*map(tool_call, calls)]}
            return [Spoken(turn)]
        return said(self.take(shape, "answered"), "assistant", self.notes)

    def with_system(self, shape: Shape, spoken: list[Spoken]) -> list[Spoken]:
        """With the text of the system's column first, unless the turns have one of their own."""
        value = self.take(shape, "system")
        text = text_of(value, "the system's text")
        if any(column.part == "transcript" for column in shape.needs):
            text = text.removeprefix("SYSTEM:").strip()
        if not text.strip():
            return spoken
        own = spoken[0].turn if spoken else {}
        if own.get("role") != "system":
            return [*said(text, "system", self.notes), *spoken]
        if own["content"] != text:
            self.notes[
                "the system's column is not used where the turns have a text of the system"
            ] = None
        return spoken

    def all_notes(self) -> Notes:
        """The notes of the row, with its columns that were not read and say something."""
        notes = dict(self.notes)
        for name, value in self._values.items():
            if name not in self._read and not is_empty(value):
                label = LABEL_NOTE if is_label(name.strip().lower()) else ""
                notes[f"the column {name[:60]!r} is not used{label}"] = None
        return notes


def require_open(asked: Sequence[Spoken]) -> None:
    """Raises RowRefused where what is asked holds an answer already, which another would follow."""
    if asked and asked[-1].turn["role"] == "assistant":
        raise RowRefused("what is asked ends with an answer")


def transcript_of(text: Any, kinds: Sequence[Transcript] = TRANSCRIPTS) -> list[Spoken] | None:
    """The turns of a conversation in one text, without an empty answer at its end; None where the
    text is none. Raises RowRefused."""
    if not isinstance(text, str):
        return None
    for kind in kinds:
        before, *parts = kind.speaker.split(text)
        if before.strip() or len(parts) < 4:
            continue
        items = []
        for speaker, words in zip(parts[::2], parts[1::2], strict=True):
            content = words.replace("<|endoftext|>", "").strip() if kind.strips else words
            items.append({"role": kind.roles[speaker], "content": content})
        if items[-1]["role"] == "assistant" and not items[-1]["content"].strip():
            items.pop()
        return turns_of(items, {})
    return None


def _asked(value: Any, notes: Notes) -> list[Spoken]:
    """What is asked, which may be a transcript up to where the answer begins."""
    if isinstance(value, str) and value.rstrip().endswith("\n\nAssistant:"):
        transcript = transcript_of(value, [HH])
        if transcript is not None:
            return transcript
    return said(value, "user", notes)


def _only_span(value: Any) -> Any:
    """The answer that all spans give. Raises RowRefused where they differ."""
    spans = value.get("text") if isinstance(value, dict) else json_list(value)
    if isinstance(spans, str):
        return spans
    if not isinstance(spans, list):
        raise RowRefused("the answers are not a list of texts")
    different = {text_of(span, "the answer") for span in spans if not is_missing(span)}
    if len(different) > 1:
        raise RowRefused("the answer is a list of alternatives")
    return next(iter(different), None)
