"""A model's pass for the next tokens of answers, by transformers' code for it: the plain way, for all
models that `straight` does not know, and the one that it is compared with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer

from forgellm.engines.torch.attention import MODEL_ERRORS
from forgellm.errors import UnsupportedModel

_PROOF_TOKENS = 10


class Reading(Enum):
    """What a model's code can put behind what its cache holds."""

    ON = auto()  # any number of tokens
    ONE_MORE = auto()  # one: state-space layers begin anew with several
    WITHOUT_CACHE = auto()  # nothing: all is read again for each token


class OwnCache:
    """transformers' cache of one answer, and the tokens that it holds."""

    def __init__(self, kept: Cache) -> None:
        self.kept = kept
        self._ids: list[int] = []

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> NDArray[np.int32]:
        return np.array(self._ids, dtype=np.int32)

    @property
    def can_be_cut(self) -> bool:
        """Sliding windows and states have forgotten what a shorter text would need."""
        return all(type(layer) is DynamicLayer for layer in self.kept.layers)

    @property
    def num_bytes(self) -> int:
        held = (tensor for layer in self.kept.layers for tensor in _tensors(vars(layer)))
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

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

    def __init__(self, model: Any, reading: Reading = Reading.ON) -> None:
        self._model, self._reading = model, reading
        names = inspect.signature(model.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in names else "past_key_values"

    def new_cache(self) -> OwnCache:
        return OwnCache(self._new())

    def _new(self) -> DynamicCache:
        return DynamicCache(config=self._model.config)

    def read(self, ids: list[int], cache: OwnCache) -> Tensor:
        if self._reading is Reading.WITHOUT_CACHE:
            logits = self._pass([*cache.ids.tolist(), *ids], None)
        elif self._reading is Reading.ONE_MORE and len(cache) and len(ids) > 1:
            cache.kept = self._new()
            logits = self._pass([*cache.ids.tolist(), *ids], cache.kept)
        else:
            logits = self._pass(ids, cache.kept)
        cache.extend(ids)
        return logits

    def step(self, ids: list[int], caches: Sequence[OwnCache]) -> Tensor:
        rows = [self.read([own], cache) for own, cache in zip(ids, caches, strict=True)]
        return torch.stack(rows)

    def _pass(self, ids: list[int], kept: Cache | None) -> Tensor:
        """Logits [V] float32 after the last of some tokens."""
        tokens = torch.tensor([ids], device=self._model.device)
        if kept is None:
            out = self._model(input_ids=tokens, use_cache=False)
        else:
            cached = {self._cache_name: kept, "use_cache": True}
            out = self._model(input_ids=tokens, logits_to_keep=1, **cached)
        return cast(Tensor, out.logits[0, -1].float())


@torch.inference_mode()
def own_code(model: Any) -> OwnCode:
    """A model's own code, reading as is right for it: so that a text read in parts gives what it gives
    as a whole. Raises UnsupportedModel where it cannot be read at all."""
    vocab_size = int(model.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(vocab_size, (_PROOF_TOKENS,), generator=generator).tolist()
    whole, problem = OwnCode(model, Reading.WITHOUT_CACHE), ""
    for reading in Reading:
        own = OwnCode(model, reading)
        try:
            if all(_is_same(own, whole, ids, parts) for parts in ((4, 9, 10), (9, 10))):
                return own
        except MODEL_ERRORS as error:
            problem = f": {type(error).__name__}: {error}"
    raise UnsupportedModel(
        f"{type(model).__name__} cannot be read from left to right{problem[:200]}",
        suggestion="Use a text model that predicts the next token.",
    )


def _is_same(own: OwnCode, whole: OwnCode, ids: list[int], ends: Sequence[int]) -> bool:
    cache, start = own.new_cache(), 0
    tolerance = 1e-3 if own._model.dtype == torch.float32 else 0.1
    for end in ends:
        ours = own.read(ids[start:end], cache)
        theirs = whole.read(ids[:end], whole.new_cache())
        if not float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max()):
            return False
        start = end
    return True


def _tensors(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict):
        for value in held.values():
            yield from _tensors(value)
    elif isinstance(held, list | tuple):
        for value in held:
            yield from _tensors(value)
