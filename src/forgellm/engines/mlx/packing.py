"""Several documents in a row, kept apart inside mlx-lm's models.

Each layer of an mlx-lm model asks its cache for the attention mask and hands it keys and values.
A `PackedCache` keeps nothing and answers with a mask of the row's documents, so that every
architecture which masks through its cache can be packed, without a change to its code.

Rotary positions run on through a row instead of starting again in each document: attention sees
only differences of positions, which are the same.

Letters: B rows, T tokens.
"""

from __future__ import annotations

import mlx.core as mx


class PackedCache:
    """Stands in for a layer's key-value cache while a packed batch passes through."""

    offset = 0

    def __init__(self, segment_ids: mx.array) -> None:
        """segment_ids [B, T] int: which document of its row a token belongs to."""
        self._same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        self._masks: dict[int | None, mx.array] = {}

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """[B, 1, T, T] bool, true where a query may attend to a key."""
        if window_size not in self._masks:
            positions = mx.arange(length)
            distance = positions[:, None] - positions[None, :]
            allowed = self._same & (distance >= 0)
            if window_size is not None:
                allowed = allowed & (distance < window_size)
            self._masks[window_size] = allowed
        return self._masks[window_size]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values


def packed_caches(segment_ids: mx.array, num_layers: int) -> list[PackedCache]:
    """One for each layer; all share the mask."""
    return [PackedCache(segment_ids)] * num_layers
