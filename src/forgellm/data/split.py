"""Which documents are held out for validation. Decided before packing, so that nothing leaks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forgellm.data.token_store import TokenStore


@dataclass(frozen=True)
class Spans:
    """Pieces of a token array, each read as a document of its own.

    Attributes:
        starts, ends: int64 [documents], positions in the array; no piece is empty.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_tokens(self) -> int:
        return int((self.ends - self.starts).sum())

    @property
    def num_targets(self) -> int:
        """Tokens that can be predicted: all but the first of each document."""
        return self.num_tokens - len(self)


@dataclass(frozen=True)
class Split:
    """Validation documents are in a seeded order, so that the first few are a fair sample."""

    train: Spans
    validation: Spans
    held_out: frozenset[bytes] = frozenset()  # hashes of the validation documents
    warnings: list[str] = field(default_factory=list)


def all_documents(store: TokenStore, excluded: frozenset[bytes] = frozenset()) -> Spans:
    """Every document of `store` whose hash is not in `excluded`."""
    kept = [number for number, key in enumerate(_keys(store)) if key not in excluded]
    return _spans(store, kept)


def split_documents(store: TokenStore, validation_split: float, seed: int) -> Split:
    """Hold out `validation_split` of the documents; equal documents stay on one side.

    A lone document gives its tail instead, a lone conversation nothing.
    """
    if validation_split == 0:
        warning = "validation_split is 0: nothing is held out, so overfitting cannot be seen."
        return Split(all_documents(store), _spans(store, []), warnings=[warning])
    keys = _keys(store)
    groups = _groups(keys)
    if len(groups) == 1 and store.trained is not None:
        warning = "All conversations are the same: none can be held out."
        return Split(all_documents(store), _spans(store, []), warnings=[warning])
    if len(groups) == 1:
        return _split_tail(store, validation_split)
    held_out = _choose(groups, math.ceil(len(keys) * validation_split), seed)
    train = [number for number, key in enumerate(keys) if key not in held_out]
    validation = [number for key in held_out for number in groups[key]]
    return Split(_spans(store, train), _spans(store, validation), frozenset(held_out))


def choose_held_out(keys: Sequence[bytes], validation_split: float, seed: int) -> list[int]:
    """Numbers of the documents that `split_documents` holds out, given their hashes, in its order.

    None where nothing can be held out whole: `validation_split` is 0, or all documents are equal.
    """
    groups = _groups(keys)
    if validation_split == 0 or len(groups) < 2:
        return []
    chosen = _choose(groups, math.ceil(len(keys) * validation_split), seed)
    return [number for key in chosen for number in groups[key]]


def _groups(keys: Iterable[bytes]) -> dict[bytes, list[int]]:
    groups: dict[bytes, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return groups


def _choose(groups: dict[bytes, list[int]], wanted: int, seed: int) -> dict[bytes, None]:
    """Groups of equal documents, in seeded order, as many as fit into `wanted` documents."""
    salt = seed.to_bytes(8, "little")
    order = sorted(groups, key=lambda key: hashlib.blake2b(key, key=salt).digest())
    chosen: dict[bytes, None] = {}  # ordered
    for key in order:
        if len(groups[key]) <= wanted:
            chosen[key] = None
            wanted -= len(groups[key])
    return chosen or {min(order, key=lambda key: len(groups[key])): None}


def _split_tail(store: TokenStore, validation_split: float) -> Split:
    """The last part of the only document (of its every copy) is not trained on."""
    whole = all_documents(store)
    length = int(whole.ends[0] - whole.starts[0])
    tail = max(2, math.ceil(length * validation_split))  # its first token cannot be predicted
    if length - tail < 3:
        warning = "The dataset is too small to hold out any of it: overfitting cannot be seen."
        return Split(whole, _spans(store, []), warnings=[warning])
    borders = whole.ends - tail
    warning = (
        "The dataset holds a single document: its last part is held out for validation. "
        "More documents make the validation loss more telling."
    )
    train, validation = Spans(whole.starts, borders), Spans(borders[:1], whole.ends[:1])
    return Split(train, validation, warnings=[warning])


def _keys(store: TokenStore) -> list[bytes]:
    return [row.tobytes() for row in store.hashes]


def _spans(store: TokenStore, documents: Iterable[int]) -> Spans:
    chosen = np.fromiter(documents, dtype=np.int64)
    return Spans(store.offsets[chosen], store.offsets[chosen + 1])
