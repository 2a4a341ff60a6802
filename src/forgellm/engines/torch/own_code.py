"""A model's pass for the next tokens of answers, by transformers' code for it: the plain way, for all
models that `straight` does not know, and the one that it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache


class OwnCache:
    """transformers' cache of one answer, and the tokens that it holds."""

    def __init__(self, config: Any) -> None:
        self.kept = DynamicCache(config=config)
        self._ids: list[int] = []

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> NDArray[np.int32]:
        return np.array(self._ids, dtype=np.int32)

    @property
    def can_be_cut(self) -> bool:
        """Sliding windows have forgotten what a shorter text would need."""
        return not any(layer.is_sliding for layer in self.kept.layers)

    @property
    def num_bytes(self) -> int:
        layers = [layer for layer in self.kept.layers if layer.is_initialized]
        return sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in layers)

    def extend(self, ids: list[int]) -> None:
        self._ids += ids

    def beginning(self, num_tokens: int) -> OwnCache:
        """A copy of the first tokens."""
        made = copy.deepcopy(self)
        if num_tokens < len(self):
            made.kept.crop(num_tokens - len(self))
            del made._ids[num_tokens:]
        return made


class OwnCode:
    """See `decoding.Model`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def new_cache(self) -> OwnCache:
        return OwnCache(self._model.config)

    def read(self, ids: list[int], cache: OwnCache) -> Tensor:
        tokens = torch.tensor([ids], device=self._model.device)
        out = self._model(
            input_ids=tokens, past_key_values=cache.kept, use_cache=True, logits_to_keep=1
        )
        cache.extend(ids)
        return cast(Tensor, out.logits[0, -1].float())

    def step(self, ids: list[int], caches: Sequence[OwnCache]) -> Tensor:
        rows = [self.read([own], cache) for own, cache in zip(ids, caches, strict=True)]
        return torch.stack(rows)
