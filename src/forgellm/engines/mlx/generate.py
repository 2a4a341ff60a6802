"""The MLX generation engine: answers several at once, remembers what prompts began with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from forgellm import hardware
from forgellm.data.batches import Batch
from forgellm.engines.base import EngineInfo, ScoredToken
from forgellm.engines.mlx import load, memory
from forgellm.engines.mlx.adapters import attach_adapter, compute_in, merge_lora
from forgellm.engines.mlx.decoding import SHORTER, BatchDecoder, can_batch
from forgellm.engines.mlx.one_by_one import SingleDecoder, cache_bits
from forgellm.engines.mlx.prefixes import PrefixStore
from forgellm.engines.mlx.scoring import batch_log_probs, prove_packing, score_text
from forgellm.engines.served_model import PREFIX_SHARE, Gauge, ServedModel


@dataclass(frozen=True)
class _Wanted:
    """What to load, and how. `adapter` is an adapters file or a full checkpoint's folder."""

    model_path: Path
    adapter: Path | None
    placement: load.Placement
    kv_bits: int | None


class _Opened:
    """A model and the answers it makes. Lives in the worker's thread."""

    def __init__(self, wanted: _Wanted, gauge: Gauge) -> None:
        memory.set_limits()
        adapter = wanted.adapter
        is_full = adapter is not None and adapter.is_dir()
        folder = adapter if adapter is not None and is_full else wanted.model_path
        self.model, config = load.load_model(folder, wanted.placement.dtype)
        if adapter is not None and not is_full:
            attach_adapter(self.model, adapter)
            merge_lora(self.model)
            compute_in(self.model, wanted.placement.dtype)
        self.model.eval()
        self.split = load.split_model(self.model)
        self.vocab_size = load.vocab_size(self.split)
        self._dtype = wanted.placement.dtype
        self._packing_is_proven = False
        prefixes = PrefixStore(int(PREFIX_SHARE * _free_bytes()))
        self.decoder = _decoder(self.model, prefixes, wanted.kv_bits)
        self.info = _info(self.model, config, wanted.placement)
        self._prefixes = prefixes
        self._weight_bytes = _weight_bytes(self.model)
        self._gauge = gauge
        self._measure()

    @property
    def is_idle(self) -> bool:
        return self.decoder.is_idle

    def step(self) -> None:
        self.decoder.step()
        self._measure()

    def close(self) -> None:
        self.decoder.close()

    def token_log_probs(self, batch: Batch) -> NDArray[np.float32]:
        if not self._packing_is_proven:
            prove_packing(self.split, self._dtype, self.vocab_size, len(batch.tokens))
            self._packing_is_proven = True
        return batch_log_probs(self.split, batch, self.vocab_size)

    def score(self, ids: list[int], num_top: int) -> list[ScoredToken]:
        with memory.out_of_memory_named(SHORTER):
            return score_text(self.split, ids, num_top, self.vocab_size)

    def _measure(self) -> None:
        cache_bytes = self._prefixes.num_bytes + self.decoder.num_bytes
        self._gauge.num_bytes = self._weight_bytes + cache_bytes


class MlxGenerateEngine(ServedModel):
    """See `served_model.ServedModel`."""

    def __init__(
        self,
        model_path: Path,
        adapter: Path | None,
        *,
        dtype: str = "auto",
        kv_bits: int | None = None,
    ) -> None:
        """`kv_bits` (4 or 8) quantises the key-value cache: answers are then made one by one."""
        wanted = _Wanted(model_path, adapter, load.choose_placement(dtype), kv_bits)
        super().__init__(partial(_Opened, wanted), "mlx", memory.end_thread)


def _decoder(
    model: nn.Module, prefixes: PrefixStore, kv_bits: int | None
) -> BatchDecoder | SingleDecoder:
    if kv_bits is not None:
        return SingleDecoder(model, prefixes, cache_bits(model, kv_bits))
    return BatchDecoder(model, prefixes) if can_batch(model) else SingleDecoder(model, prefixes)


def _free_bytes() -> int:
    free = memory.available_bytes()
    return hardware.memory_available_bytes() if free is None else free


def _weight_bytes(model: nn.Module) -> int:
    return sum(value.nbytes for _, value in tree_flatten(model.parameters()))


def _info(model: nn.Module, config: dict[str, Any], placement: load.Placement) -> EngineInfo:
    return EngineInfo(
        engine="mlx",
        device=placement.device,
        dtype=placement.dtype_name,
        dtype_reason=placement.reason,
        num_parameters=load.num_parameters(model),
        num_trainable=0,
        context_length=load.context_length(config),
        versions=load.versions(),
    )
