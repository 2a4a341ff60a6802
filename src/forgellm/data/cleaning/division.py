"""What is trained on and what is held out of a dataset, and what both sides share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forgellm.data.cleaning.items import Item, OnProgress, Reading, Spool
from forgellm.data.documents import Document
from forgellm.data.held_out import held_out_texts
from forgellm.data.overlap import HeldOut, OverlapIndex
from forgellm.data.split import choose_held_out
from forgellm.data.token_store import HASH_BYTES
from forgellm.schema.preparation import DataKind, SplitRequest


@dataclass(frozen=True)
class Side:
    """`sources` are those of the held-out side alone."""

    items: int
    characters: int
    sources: list[str]


@dataclass(frozen=True)
class Division:
    """How a dataset is split, and what of the held-out texts is in the training text.

    Attributes:
        note: what to know about the split, or nothing.
        overlaps: a report for "validation" and for each file compared with.
    """

    kind: DataKind
    train: Side
    validation: Side
    note: str
    overlaps: dict[str, dict[str, Any]]


def divide(
    folder: Path, wanted: SplitRequest, against: Mapping[str, Path], on_progress: OnProgress
) -> Division:
    """Split as a run with this `validation_split` and `seed` does, and compare; also with the files
    of `against`, by name.

    Raises DataError if nothing can be read, or a file of `against` cannot; DiskFull.
    """
    files = {name: list(held_out_texts(path)) for name, path in against.items()}
    reading = Reading.of(folder, wanted.kind, wanted.columns)
    with Spool() as spool:
        keys = []
        for item in reading.items(on_progress, "reading"):
            spool.add(item)
            keys.append(hashlib.blake2b(item.text.encode(), digest_size=HASH_BYTES).digest())
        reading.require_items(len(keys))
        parts = _Parts(spool, keys, wanted, on_progress)
        validation = [HeldOut(item.source, item.text) for item in parts.validation()]
        indexes = {"validation": OverlapIndex(validation)}
        indexes |= {name: OverlapIndex(texts) for name, texts in files.items()}
        num_train, num_characters = 0, 0
        for item in parts.train():
            num_train += 1
            num_characters += len(item.text)
            for index in indexes.values():
                index.look_through(Document(item.source, item.text))
    return Division(
        reading.kind,
        Side(num_train, num_characters, []),
        Side(
            len(validation),
            sum(len(item.text) for item in validation),
            [item.name for item in validation],
        ),
        parts.note(reading.kind),
        {name: asdict(index.report()) for name, index in indexes.items()},
    )


class _Parts:
    """The two sides of the items in a spool."""

    def __init__(
        self, spool: Spool, keys: list[bytes], wanted: SplitRequest, on_progress: OnProgress
    ) -> None:
        self._spool, self._on_progress = spool, on_progress
        self._held_out = frozenset(choose_held_out(keys, wanted.validation_split, wanted.seed))
        # As in a run, the tail of a lone document is held out, here by characters.
        is_lone = wanted.validation_split > 0 and len(set(keys)) == 1
        self._tail = wanted.validation_split if is_lone else 0.0

    def validation(self) -> Iterator[Item]:
        def tail(text: str) -> str:
            return text[len(text) - math.ceil(len(text) * self._tail) :]

        if self._tail:
            yield from (
                item._replace(text=tail(item.text)) for item in self._items(lambda n: n == 0)
            )
        else:
            yield from self._items(lambda number: number in self._held_out)

    def train(self) -> Iterator[Item]:
        for item in self._items(lambda number: number not in self._held_out):
            end = len(item.text) - math.ceil(len(item.text) * self._tail)
            yield item._replace(text=item.text[:end])

    def note(self, kind: DataKind) -> str:
        if self._tail:
            return "There is a single document: about its last part is held out."
        if kind != "documents":
            return f"A run splits {kind} by their tokens, so it may choose others."
        return ""

    def _items(self, belongs: Callable[[int], bool]) -> Iterator[Item]:
        for number, item in enumerate(self._spool.items(self._on_progress, "comparing")):
            if belongs(number):
                yield item
