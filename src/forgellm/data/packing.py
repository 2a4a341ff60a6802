"""Documents packed into rows of T tokens, without padding, any row computed from its number.

Training documents form an endless stream: all of them in a seeded order, then all again in another
order, and so on. Row r reads the stream at [r*T, r*T + T) and predicts [r*T + 1, r*T + T], so each
token but the first of its document is a target exactly once an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from forgellm.data.batches import PADDING_SEGMENT, Batch
from forgellm.data.split import Spans

NO_DOCUMENT = -1


class PackedStream:
    """The endless training stream. Memory grows with the number of documents, not of tokens."""

    def __init__(self, tokens: NDArray[np.uint32], spans: Spans, seq_len: int, seed: int) -> None:
        if not len(spans):
            raise ValueError("nothing to pack")
        self.tokens = tokens
        self.spans = spans
        self.seq_len = seq_len
        self.seed = seed
        self.epoch_tokens = spans.num_tokens
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    @property
    def rows_per_epoch(self) -> float:
        return self.epoch_tokens / self.seq_len

    def row(self, number: int) -> Batch:
        """Row `number` of the stream, as a batch of one."""
        tokens, documents = self._read(number * self.seq_len, self.seq_len + 1)
        return to_batch(tokens[None], documents[None])

    def longest_document_row(self) -> int:
        """A row of the first epoch that the longest document fills, as far as it can."""
        _, ends = self._epoch(0)
        slot = int(np.argmax(np.diff(ends, prepend=0)))
        start, end = int(ends[slot - 1]) if slot else 0, int(ends[slot])
        row = -(-start // self.seq_len)
        return row if (row + 1) * self.seq_len <= end else start // self.seq_len

    def _read(self, position: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """[count] tokens from `position` of the stream, and the number in it of their document."""
        tokens, documents = [], []
        while count > 0:
            epoch, offset = divmod(position, self.epoch_tokens)
            taken = min(count, self.epoch_tokens - offset)
            order, ends = self._epoch(epoch)
            part, slots = _gather(self.tokens, self.spans, order, ends, offset, taken)
            tokens.append(part)
            documents.append(slots + epoch * len(order))
            position, count = position + taken, count - taken
        return np.concatenate(tokens), np.concatenate(documents)

    def _shuffled(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # Sorting raw bits, since numpy promises them (but no `permutation`) across its versions.
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        order = np.argsort(bits.random_raw(len(self.spans)), kind="stable")
        return order, np.cumsum(self.spans.ends[order] - self.spans.starts[order])


def validation_rows(
    tokens: NDArray[np.uint32], spans: Spans, seq_len: int, batch_size: int
) -> Iterator[Batch]:
    """All documents once, in the order given. The last batch may have fewer rows; its last row is
    filled up with padding."""
    order = np.arange(len(spans))
    ends = np.cumsum(spans.ends - spans.starts)
    total = int(ends[-1]) if len(spans) else 0
    num_rows = -(-(total - 1) // seq_len) if total else 0
    for first in range(0, num_rows, batch_size):
        numbers = range(first, min(first + batch_size, num_rows))
        row_tokens = np.zeros((len(numbers), seq_len + 1), dtype=np.int32)
        documents = np.full((len(numbers), seq_len + 1), NO_DOCUMENT, dtype=np.int64)
        for index, number in enumerate(numbers):
            count = min(seq_len + 1, total - number * seq_len)
            row_tokens[index, :count], documents[index, :count] = _gather(
                tokens, spans, order, ends, number * seq_len, count
            )
        yield to_batch(row_tokens, documents)


def _gather(
    tokens: NDArray[np.uint32],
    spans: Spans,
    order: NDArray[np.int64],
    ends: NDArray[np.int64],
    offset: int,
    count: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """[count] tokens from `offset` of the documents laid out in `order`, and the places in `order`
    that they come from. `ends` are the documents' ends in that layout."""
    positions = np.arange(offset, offset + count)
    slots = np.searchsorted(ends, positions, side="right")
    in_store = spans.ends[order[slots]] - (ends[slots] - positions)
    return tokens[in_store].astype(np.int32), slots


def to_batch(
    tokens: NDArray[np.int32],
    documents: NDArray[np.int64],
    trained: NDArray[np.bool_] | None = None,
) -> Batch:
    """From [B, T + 1] tokens and document numbers, which grow by one at each border; `trained`
    marks the tokens that are learned, all if there is none."""
    inputs, following = documents[:, :-1], documents[:, 1:]
    counted = (inputs == following) & (inputs != NO_DOCUMENT)
    if trained is not None:
        counted &= trained[:, 1:]
    segments = np.where(inputs == NO_DOCUMENT, PADDING_SEGMENT, inputs - inputs[:, :1])
    return Batch(
        tokens=np.ascontiguousarray(tokens[:, :-1]),
        targets=np.where(counted, tokens[:, 1:], 0).astype(np.int32),
        loss_mask=counted.astype(np.float32),
        segment_ids=segments.astype(np.int32),
    )
