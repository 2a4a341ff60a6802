"""What was left out of a dataset, in the order in which it matters, and in one sentence.

Whoever asks gets the same: the terminal, the API and the page take the words from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from forgellm.data.documents import Skipped
from forgellm.data.kinds import LEARNED_WITH, is_of_another, others_in
from forgellm.errors import DataError
from forgellm.schema.recipe import Recipe

_FIRST_AT = re.compile(r", first at \d+$")
_REASONS_TOLD = 4
_SOURCES_TOLD = 2
_IN_DETAILS = 20
# Files that belong to something else tell little of what is missing.
_UNSUPPORTED = "unsupported type"


@dataclass
class Reason:
    """What was left out for one reason.

    Attributes:
        sources: the files, each once.
        rows: of them, where not the whole files were left out.
    """

    reason: str
    sources: list[str] = field(default_factory=list)
    rows: int = 0

    @property
    def where(self) -> str:
        names = ", ".join(self.sources[:_SOURCES_TOLD])
        more = len(self.sources) - _SOURCES_TOLD
        return f"{names} and {more:,} more" if more > 0 else names

    def __str__(self) -> str:
        if self.rows:
            what = "1 row" if self.rows == 1 else f"{self.rows:,} rows"
        elif len(self.sources) == 1:
            return f"{self.where}: {self.reason}"
        else:
            what = f"{len(self.sources):,} files"
        return f"{what}: {self.reason} ({self.where})"


def worst_first(items: Iterable[Skipped]) -> list[Skipped]:
    """Whole files before rows, the most rows first, and last what is of another kind."""
    return sorted(items, key=lambda item: (_rank(item.reason, item.rows), item.source))


def reasons_of(items: Iterable[Skipped]) -> list[Reason]:
    """The same reason told once, in the order of `worst_first`."""
    found: dict[tuple[str, bool], Reason] = {}
    for item in worst_first(items):
        text = _FIRST_AT.sub("", item.reason)
        reason = found.setdefault((text, item.rows is None), Reason(text))
        if item.source not in reason.sources:
            reason.sources.append(item.source)
        reason.rows += item.rows or 0
    return sorted(found.values(), key=lambda one: _rank(one.reason, one.rows or None))


def in_words(items: Iterable[Skipped]) -> str:
    """One line; empty if nothing was left out. What other methods learn is counted at the end."""
    items = list(items)
    reasons = reasons_of(item for item in items if not is_of_another(item.reason))
    told = [str(reason) for reason in reasons[:_REASONS_TOLD]]
    if len(reasons) > _REASONS_TOLD:
        told.append(f"and {len(reasons) - _REASONS_TOLD:,} other reasons")
    for kind, count in others_in(items).items():
        told.append(f"{count:,} {kind if count > 1 else kind[:-1]}, {LEARNED_WITH[kind]}")
    return "; ".join(told)


def nothing_to_train(recipe: Recipe, items: Sequence[Skipped], types: Iterable[str]) -> DataError:
    """Why a dataset yields nothing. `types` are the types of files that could hold what is learned."""
    what = _WHAT[recipe.training_type]
    message = f"No {what} was found in the dataset {recipe.dataset!r}"
    if words := in_words(items):
        message += f". Left out: {words}"
    return DataError(
        message,
        suggestion=_suggestion(recipe, items, types),
        details={"dataset": recipe.dataset, "skipped": as_lines(items)},
    )


def as_lines(items: Iterable[Skipped]) -> list[str]:
    """The worst of them, for the details of an error."""
    return [
        f"{item.source}: {item.reason}" + (f" ({item.rows:,} rows)" if item.rows else "")
        for item in worst_first(items)[:_IN_DETAILS]
    ]


_WHAT = {"cpt": "text", "ift": "conversation"} | dict.fromkeys(("dpo", "orpo"), "pair of answers")
_PAIRS = "JSON lines with `prompt`, `chosen` and `rejected` into it"
_WHERE = {
    "cpt": "documents of these types into it",
    "ift": "conversations into it, such as JSON lines with `messages`, or with `prompt` and `completion`",
} | dict.fromkeys(("dpo", "orpo"), _PAIRS)
# What to do about a reason, by words that stand in it.
_ADVICE = (
    (r"(beyond|over) \d+ tokens", "Raise max_seq_length, or divide what is too long."),
    (r"with training_type dpo", "Train it with training_type dpo or orpo."),
    (r"with training_type cpt", "Documents are learned with training_type cpt."),
    (r"with training_type ift", "Train it with training_type ift."),
    (r"unknown role", "Name the speakers user, assistant, system or tool."),
    (r"known columns|no column", "Say with columns which column holds what."),
)


def _suggestion(recipe: Recipe, items: Sequence[Skipped], types: Iterable[str]) -> str:
    """What to do about the reason that cost most, and what could be put into the dataset."""
    put = f"Put {_WHERE[recipe.training_type]}: " + " ".join(sorted(types))
    for reason in sorted(reasons_of(items), key=lambda one: -one.rows):
        for words, advice in _ADVICE:
            if re.search(words, reason.reason):
                return f"{advice} Or: {put[0].lower()}{put[1:]}"
    return put


def _rank(reason: str, rows: int | None) -> tuple[Any, ...]:
    if reason == _UNSUPPORTED or is_of_another(reason):
        return (2, 0)
    return (0, 0) if rows is None else (1, -rows)
