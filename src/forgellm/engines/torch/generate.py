"""The torch generation engine: answers several at once, remembers what prompts began with."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forgellm import hardware
from forgellm.data.batches import Batch
from forgellm.engines.answers import Answer, Question, Token
from forgellm.engines.base import EngineInfo, ScoredToken
from forgellm.engines.torch import load, memory
from forgellm.engines.torch.adapters import attach_adapter
from forgellm.engines.torch.decoding import SHORTER, BatchDecoder, Model
from forgellm.engines.torch.lora import merge_lora
from forgellm.engines.torch.own_code import OwnCode
from forgellm.engines.torch.prefixes import Prefixes
from forgellm.engines.torch.quantised import num_parameters
from forgellm.engines.torch.scoring import batch_log_probs, score_text
from forgellm.engines.torch.straight import straight_model
from forgellm.engines.worker import Worker
from forgellm.errors import ConfigError, InvalidRequest
from forgellm.schema.generation import Sampling

# Of the memory that is free once the weights are there, what prompts and answers may be kept in.
_PREFIX_SHARE = 0.25


@dataclass(frozen=True)
class _Wanted:
    """What to load, and how. `adapter` is an adapters file or a full checkpoint's folder."""

    model_path: Path
    adapter: Path | None
    placement: load.Placement


@dataclass
class _Gauge:
    """What the worker last said of its memory, to be read without waiting for it."""

    num_bytes: int = 0


class _Opened:
    """A model and the answers it makes. Lives in the worker's thread."""

    def __init__(self, wanted: _Wanted, gauge: _Gauge) -> None:
        self._place, self._gauge = wanted.placement, gauge
        self.model = _loaded(wanted)
        self.info = _info(self.model, self._place)
        passes: Model[Any] = straight_model(self.model) or OwnCode(self.model)
        self.prefixes: Prefixes[Any] = Prefixes(int(_PREFIX_SHARE * _free_bytes(self._place)))
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
        return batch_log_probs(self.model, batch, self._place.device, self._place.dtype)

    @torch.inference_mode()
    def score(self, ids: list[int], num_top: int) -> list[ScoredToken]:
        with memory.out_of_memory_named(SHORTER):
            return score_text(self.model, ids, num_top, self._place.device, self._place.dtype)

    def _measure(self) -> None:
        self._gauge.num_bytes = self._weight_bytes + self.prefixes.num_bytes


class TorchGenerateEngine:
    """See `engines.base.GenerateEngine`. May be used by several threads at once.

    The model itself is known only to the worker's thread, which ends when this object is gone. An
    adapter is merged into plain weights when loaded, and stays beside quantised ones.
    """

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
        self._gauge = _Gauge()
        opening = partial(_Opened, wanted, self._gauge)
        self._worker = Worker(opening, "torch", memory.release_freed)
        self.info = self._worker.call(lambda opened: opened.info)
        self.max_concurrent = BatchDecoder.max_concurrent

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, stop_ids: frozenset[int]
    ) -> Iterator[int]:
        with closing(self._answer(prompt_ids, sampling, stop_ids)) as tokens:
            for token_id, _ in tokens:
                yield token_id

    def generate_scored(
        self, prompt_ids: list[int], sampling: Sampling, stop_ids: frozenset[int], num_top: int
    ) -> Iterator[ScoredToken]:
        with closing(self._answer(prompt_ids, sampling, stop_ids, num_top)) as tokens:
            for _, score in tokens:
                assert score is not None
                yield score

    def score(self, ids: list[int], num_top: int) -> list[ScoredToken]:
        return self._worker.call(lambda opened: opened.score(ids, num_top))

    def token_log_probs(self, batch: Batch) -> NDArray[np.float32]:
        return self._worker.call(lambda opened: opened.token_log_probs(batch))

    def memory_bytes(self) -> int:
        return self._gauge.num_bytes

    def _answer(
        self,
        prompt_ids: list[int],
        sampling: Sampling,
        stop_ids: frozenset[int],
        num_top: int | None = None,
    ) -> Generator[Token]:
        if not prompt_ids:
            raise InvalidRequest("The prompt is empty.", suggestion="Send at least one character.")
        max_tokens = min(sampling.max_tokens, self.info.context_length - len(prompt_ids))
        if max_tokens < 1:
            return
        answer = Answer(Question(prompt_ids, sampling, stop_ids, max_tokens, num_top))
        self._worker.send(lambda opened: opened.decoder.insert(answer))
        yield from answer.tokens()


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
