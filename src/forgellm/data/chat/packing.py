"""Whole conversations, or pairs of them, packed into rows of T tokens: none is torn apart, little
is padding.

Which share a row is fixed by the seed (best fit, the longest first, over windows of a
seeded order); the order of the rows differs from epoch to epoch. Any row is computed from its number.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from forgellm.data.batches import Batch, PairBatch
from forgellm.data.packing import NO_DOCUMENT, to_batch
from forgellm.data.split import Spans
from forgellm.data.token_store import TokenStore

_WINDOW = 4096


class PackedConversations:
    """The endless training stream. Memory grows with the number of conversations, not of tokens."""

    def __init__(self, store: TokenStore, spans: Spans, seq_len: int, seed: int) -> None:
        if not len(spans):
            raise ValueError("nothing to pack")
        assert store.trained is not None
        self.store, self.spans, self.seq_len, self.seed = store, spans, seq_len, seed
        self._rows = _pack(spans.ends - spans.starts, seq_len + 1, seed)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    @property
    def rows_per_epoch(self) -> float:
        return len(self._rows)

    def row(self, number: int) -> Batch:
        """Row `number` of the stream, as a batch of one."""
        epoch, place = divmod(number, len(self._rows))
        return self._batch([self._rows[self._order(epoch)[place]]])

    def longest_document_row(self) -> int:
        """A row of the first epoch with the longest conversation."""
        longest = int(np.argmax(self.spans.ends - self.spans.starts))
        row = next(number for number, members in enumerate(self._rows) if longest in members)
        return int(np.flatnonzero(self._order(0) == row)[0])

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All rows once; the last batch may have fewer."""
        for first in range(0, len(self._rows), batch_size):
            yield self._batch(self._rows[first : first + batch_size])

    def _batch(self, rows: list[list[int]]) -> Batch:
        tokens = np.zeros((len(rows), self.seq_len + 1), dtype=np.int32)
        documents = np.full(tokens.shape, NO_DOCUMENT, dtype=np.int64)
        trained = np.zeros(tokens.shape, dtype=bool)
        assert self.store.trained is not None
        for row, members in enumerate(rows):
            position = 0
            segments = [segment for member in members for segment in self._segments(member)]
            for place, (start, end) in enumerate(segments):
                columns = slice(position, position + end - start)
                tokens[row, columns] = self.store.tokens[start:end]
                trained[row, columns] = self.store.trained[start:end]
                documents[row, columns] = place
                position += end - start
        return to_batch(tokens, documents, trained)

    def _segments(self, member: int) -> list[tuple[int, int]]:
        """Where the tokens are that attend to each other, in the store."""
        return [(int(self.spans.starts[member]), int(self.spans.ends[member]))]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return _seeded_order(len(self._rows), [self.seed, epoch, 1])


class PackedPairs(PackedConversations):
    """As `PackedConversations`, of rows that hold both conversations of each of their pairs."""

    def __init__(self, store: TokenStore, spans: Spans, seq_len: int, seed: int) -> None:
        super().__init__(store, spans, seq_len, seed)
        self._numbers = np.searchsorted(store.offsets, spans.starts)
        self._pairs_a_row = max(map(len, self._rows))

    def _segments(self, member: int) -> list[tuple[int, int]]:
        assert self.store.rejected is not None
        border = int(self.store.rejected[self._numbers[member]])
        return [
            (int(self.spans.starts[member]), border),
            (border, int(self.spans.ends[member])),
        ]

    def _batch(self, rows: list[list[int]]) -> PairBatch:
        pairs = np.full((len(rows), self._pairs_a_row), -1, dtype=np.int64)
        for row, members in enumerate(rows):
            pairs[row, : len(members)] = self._numbers[members]
        reference = np.zeros((*pairs.shape, 2), dtype=np.float32)
        return PairBatch(**vars(super()._batch(rows)), pairs=pairs, reference=reference)


def packed_conversations(
    store: TokenStore, spans: Spans, seq_len: int, seed: int
) -> PackedConversations:
    kind = PackedConversations if store.rejected is None else PackedPairs
    return kind(store, spans, seq_len, seed)


def conversations_once(
    store: TokenStore, spans: Spans, seq_len: int, batch_size: int
) -> Iterator[Batch]:
    """All conversations or pairs once, packed the same way each time; none if there are none."""
    if len(spans):
        yield from packed_conversations(store, spans, seq_len, seed=0).in_order(batch_size)


def _pack(lengths: NDArray[np.int64], capacity: int, seed: int) -> list[list[int]]:
    """Numbers of the conversations that share each row."""
    order = _seeded_order(len(lengths), [seed, 0, 0])
    rows: list[list[int]] = []
    for first in range(0, len(order), _WINDOW):
        window = order[first : first + _WINDOW]
        window = window[np.argsort(-lengths[window], kind="stable")]
        left: list[tuple[int, int]] = []  # (room, row), by room
        for number in window.tolist():
            length = int(lengths[number])
            place = bisect_left(left, (length, -1))
            if place == len(left):
                rows.append([number])
                insort(left, (capacity - length, len(rows) - 1))
            else:
                room, row = left.pop(place)
                rows[row].append(number)
                insort(left, (room - length, row))
    return rows


def _seeded_order(count: int, seed: list[int]) -> NDArray[np.int64]:
    # Sorting raw bits, since numpy promises them (but no `permutation`) across its versions.
    bits = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(bits, kind="stable")
