"""The torch generation engine: answers several at once, remembers what prompts began with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forgellm import hardware
from forgellm.data.batches import Batch
from forgellm.engines.base import EngineInfo, ScoredToken
from forgellm.engines.served_model import PREFIX_SHARE, Gauge, ServedModel
from forgellm.engines.torch import load, memory
from forgellm.engines.torch.adapters import attach_adapter
from forgellm.engines.torch.decoding import SHORTER, BatchDecoder, Model
from forgellm.engines.torch.lora import merge_lora
from forgellm.engines.torch.own_code import own_code
from forgellm.engines.torch.prefixes import Prefixes
from forgellm.engines.torch.quantised import num_parameters
from forgellm.engines.torch.scoring import batch_log_probs, prove_packing, score_text
from forgellm.engines.torch.straight import straight_model
from forgellm.errors import ConfigError


@dataclass(frozen=True)
class _Wanted:
    """What to load, and how. `adapter` is an adapters file or a full checkpoint's folder."""

    model_path: Path
    adapter: Path | None
    placement: load.Placement


class _Opened:
    """A model and the answers it makes. Lives in the worker's thread."""

    def __init__(self, wanted: _Wanted, gauge: Gauge) -> None:
        self._place, self._gauge = wanted.placement, gauge
        self.model = _loaded(wanted)
        self.info = _info(self.model, self._place)
        passes: Model[Any] = straight_model(self.model) or own_code(self.model)
        self.prefixes: Prefixes[Any] = Prefixes(int(PREFIX_SHARE * _free_bytes(self._place)))
        self.decoder = BatchDecoder(passes, self.prefixes, self._place.device)
        self._weight_bytes = memory.held_bytes(self.model)
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
        prove_packing(self.model, self._place.device, self._place.dtype)
        return batch_log_probs(self.model, batch, self._place.device, self._place.dtype)

    @torch.inference_mode()
    def score(self, ids: list[int], num_top: int) -> list[ScoredToken]:
        with memory.out_of_memory_named(SHORTER):
            return score_text(self.model, ids, num_top, self._place.device, self._place.dtype)

    def _measure(self) -> None:
        self._gauge.num_bytes = self._weight_bytes + self.prefixes.num_bytes


class TorchGenerateEngine(ServedModel):
    """See `served_model.ServedModel`."""

    def __init__(
        self,
        model_path: Path,
        adapter: Path | None,
        *,
        dtype: str = "auto",
        kv_bits: int | None = None,
    ) -> None:
        if kv_bits is not None:
            raise ConfigError.one(
                "kv_bits",
                "the torch engine keeps its cache in the model's own type; use engine mlx, or none",
            )
        wanted = _Wanted(model_path, adapter, load.choose_placement(dtype))
        super().__init__(partial(_Opened, wanted), "torch", memory.release_freed)


def _loaded(wanted: _Wanted) -> Any:
    place, adapter = wanted.placement, wanted.adapter
    is_full = adapter is not None and adapter.is_dir()
    source = adapter if adapter is not None and is_full else wanted.model_path
    model = load.load_model(source, place.dtype, place.device)
    if adapter is not None and not is_full:
        attach_adapter(model, adapter)
        merge_lora(model)
    return model.eval().requires_grad_(False)


def _free_bytes(place: load.Placement) -> int:
    free = memory.available_bytes(place.device)
    return hardware.memory_available_bytes() if free is None else free


def _info(model: Any, place: load.Placement) -> EngineInfo:
    return EngineInfo(
        engine="torch",
        device=place.device.type,
        dtype=place.dtype_name,
        dtype_reason=place.reason,
        num_parameters=num_parameters(model),
        num_trainable=0,
        context_length=load.context_length(model),
        versions=load.versions(),
    )
