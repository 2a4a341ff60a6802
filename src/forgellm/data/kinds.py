"""Which method learns what another passes over: told where it is left out, and counted from there.

A folder may hold documents, conversations and pairs of answers side by side. Each method takes its
own kind, and what it leaves is no loss but is learned with another method.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from forgellm.data.reading.json_layouts import TEXT_FIELDS
from forgellm.schema.preparation import DataKind

if TYPE_CHECKING:
    from forgellm.data.documents import Skipped

LEARNED_WITH: dict[DataKind, str] = {
    "documents": "learned with training_type cpt",
    "conversations": "learned with training_type ift",
    "pairs": "learned with training_type dpo or orpo",
}
OF_DOCUMENTS = f"documents are {LEARNED_WITH['documents']}"
"""Why a file that can hold nothing but documents is left out by the other methods."""

_ONE: dict[DataKind, str] = {
    "documents": "plain text is",
    "conversations": "a conversation is",
    "pairs": "a chosen and a rejected answer are",
}
_TOLD = re.compile("|".join(map(re.escape, LEARNED_WITH.values())))


def kind_of_row(row: Any) -> DataKind | None:
    """What the row holds; None where no method could learn from it. A row with a text is a document,
    and one with two answers to choose from a pair, whatever else it has."""
    # Not at the top: the parsers bring tokenizers, which a listing of files does without.
    from forgellm.data.chat.pairs import pair_of
    from forgellm.data.chat.rows import conversation_of
    from forgellm.data.chat.turns import RowRefused

    if isinstance(row, dict) and any(
        str(name).lower() in TEXT_FIELDS and isinstance(value, str) for name, value in row.items()
    ):
        return "documents"
    for kind, parse in (("pairs", pair_of), ("conversations", conversation_of)):
        try:
            parse(row, None)
        except RowRefused:
            continue
        return kind  # type: ignore[return-value]
    return None


def with_kind(reason: str, row: Any) -> str:
    """`reason`, why a method left a row out, and which other one learns it, if one does."""
    kind = kind_of_row(row)
    return reason if kind is None else f"{reason}; {_ONE[kind]} {LEARNED_WITH[kind]}"


def is_of_another(reason: str) -> bool:
    return _TOLD.search(reason) is not None


def others_in(skipped: Iterable[Skipped]) -> dict[DataKind, int]:
    """How many rows, and files that were not opened, hold what another method learns."""
    counts: Counter[DataKind] = Counter()
    for item in skipped:
        if told := _TOLD.search(item.reason):
            kind = next(kind for kind, words in LEARNED_WITH.items() if words == told[0])
            counts[kind] += item.rows or 1
    return dict(counts)
