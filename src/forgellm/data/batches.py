"""The one type that crosses from data to an engine."""

from __future__ import annotations

from dataclasses import dataclass

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

    def positions(self) -> NDArray[np.int32]:
        """[B, T] int32: position of each token in its own segment, from 0."""
        starts = np.ones_like(self.segment_ids, dtype=bool)
        starts[:, 1:] = self.segment_ids[:, 1:] != self.segment_ids[:, :-1]
        columns = np.arange(self.tokens.shape[1], dtype=np.int32)[None, :]
        last_start = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
        return (columns - last_start).astype(np.int32)

    def rows(self, rank: int, num_ranks: int) -> Batch:
        """Every `num_ranks`-th row, from `rank` on: one process's share."""
        part = slice(rank, None, num_ranks)
        return Batch(
            self.tokens[part], self.targets[part], self.loss_mask[part], self.segment_ids[part]
        )
