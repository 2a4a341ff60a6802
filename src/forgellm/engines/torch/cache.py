"""The keys and values of one answer's tokens, as `straight` writes and reads them.

Letters: L layers, K key-value heads, C tokens there is room for, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 256  # tokens of room that are taken at a time


@dataclass(frozen=True)
class CacheShape:
    """What is kept of a token."""

    num_layers: int
    num_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    def room_for(self, num_tokens: int) -> Tensor:
        """[L, 2, K, C, d], keys and then values, not written to yet."""
        size = (self.num_layers, 2, self.num_heads, num_tokens, self.head_size)
        return torch.empty(size, dtype=self.dtype, device=self.device)


class KeyValueCache:
    """Grows at its end and is cut there; what stands in it is never changed."""

    can_be_cut = True

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self._ids = np.empty(0, dtype=np.int32)
        self._room = shape.room_for(0)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def ids(self) -> NDArray[np.int32]:
        """The tokens that it holds."""
        return self._ids[: self._length]

    @property
    def num_bytes(self) -> int:
        return self._room.numel() * self._room.element_size()

    @property
    def place(self) -> tuple[int, int, int]:
        """Address of the room [L, 2, K, C, d], C, and how many tokens it holds."""
        return self._room.data_ptr(), self._room.shape[3], self._length

    def extended(self, ids: list[int]) -> Tensor:
        """[L, 2, K, n, d]: all that it holds, with room for these tokens at its end, which the
        caller is to fill."""
        length = self._length + len(ids)
        if length > self._room.shape[3]:
            self._grow(length)
        self._ids[self._length : length] = ids
        self._length = length
        return self._room[:, :, :, :length]

    def beginning(self, num_tokens: int) -> KeyValueCache:
        """A copy of the first tokens."""
        copy = KeyValueCache(self._shape)
        copy.extended(self._ids[:num_tokens].tolist()).copy_(self._room[:, :, :, :num_tokens])
        return copy

    def _grow(self, length: int) -> None:
        """By half as much again, or what the next turn of a chat adds would be copied each time."""
        size = -(-length * 3 // (2 * CHUNK)) * CHUNK
        room, ids = self._shape.room_for(size), np.empty(size, dtype=np.int32)
        room[:, :, :, : self._length] = self._room[:, :, :, : self._length]
        ids[: self._length] = self.ids
        self._room, self._ids = room, ids
