"""What crosses from data to an engine: packed rows of tokens, and packed pairs of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

PADDING_SEGMENT = -1


@dataclass(frozen=True)
class Batch:
    """Packed rows of tokens. B rows, T tokens each.

    Attributes:
        tokens: [B, T] int32, what the model reads.
        targets: [B, T] int32, the token that follows each (0 where `loss_mask` is 0).
        loss_mask: [B, T] float32, 1 where the target counts in the loss, else 0.
        segment_ids: [B, T] int32, which document of its row a token belongs to, counted from 0;
            -1 is padding. A token attends only to earlier tokens of its own segment.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    loss_mask: NDArray[np.float32]
    segment_ids: NDArray[np.int32]

    @property
    def num_targets(self) -> int:
        return int(self.loss_mask.sum())

    @property
    def num_terms(self) -> int:
        """What the loss is a mean over: the counted tokens."""
        return self.num_targets

    def positions(self) -> NDArray[np.int32]:
        """[B, T] int32: position of each token in its own segment, from 0."""
        starts = np.ones_like(self.segment_ids, dtype=bool)
        starts[:, 1:] = self.segment_ids[:, 1:] != self.segment_ids[:, :-1]
        columns = np.arange(self.tokens.shape[1], dtype=np.int32)[None, :]
        last_start = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
        return (columns - last_start).astype(np.int32)

    def rows(self, rank: int, num_ranks: int) -> Self:
        """Every `num_ranks`-th row, from `rank` on: one process's share."""
        part = slice(rank, None, num_ranks)
        return type(self)(*(getattr(self, field.name)[part] for field in fields(self)))

    def padding_row(self) -> Self:
        """One row of this batch's shape in which nothing counts."""
        return type(self)(
            *(
                np.full(
                    (1, *value.shape[1:]),
                    PADDING_SEGMENT if name in ("segment_ids", "pairs") else 0,
                    value.dtype,
                )
                for name, value in ((f.name, getattr(self, f.name)) for f in fields(self))
            )
        )

    @classmethod
    def stack(cls, rows: Sequence[Self]) -> Self:
        """One batch of several."""
        first = rows[0]
        names = [field.name for field in fields(first)]
        return type(first)(*(np.concatenate([getattr(r, name) for r in rows]) for name in names))


@dataclass(frozen=True)
class PairBatch(Batch):
    """Rows of pairs: segment 2k of a row is the chosen conversation of its pair k, segment 2k + 1
    the rejected one. K is the most pairs that any row of the run has.

    Attributes:
        pairs: [B, K] int64, the number of each pair in its dataset; -1 where a row has fewer.
        reference: [B, K, 2] float32, log-probability of the chosen and of the rejected answer by
            the model that training started from; 0 where none is needed.
    """

    pairs: NDArray[np.int64]
    reference: NDArray[np.float32]

    @property
    def num_terms(self) -> int:
        """What the loss is a mean over: the pairs."""
        return int((self.pairs >= 0).sum())

    def answers(self) -> NDArray[np.int32]:
        """[B, T] int32: the answer a counted target belongs to, as its place in [B, K, 2] laid
        flat; 0 where none does."""
        num_rows, num_pairs = self.pairs.shape
        first = np.arange(num_rows, dtype=np.int32)[:, None] * (2 * num_pairs)
        return np.where(self.loss_mask > 0, first + self.segment_ids, 0).astype(np.int32)

    def answer_sums(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[B, K, 2] float32: the values [B, T] of each answer's counted targets, summed."""
        values = (values * self.loss_mask).reshape(-1)
        sums = np.bincount(self.answers().reshape(-1), values, minlength=2 * self.pairs.size)
        return sums.astype(np.float32).reshape(*self.pairs.shape, 2)

    def answer_lengths(self) -> NDArray[np.float32]:
        """[B, K, 2] float32: counted targets of each answer."""
        return self.answer_sums(self.loss_mask)
