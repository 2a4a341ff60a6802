"""The MLX generation engine: answers several at once, remembers what prompts began with."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
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
from forgellm.engines.answers import Answer, Question, Token
from forgellm.engines.base import EngineInfo, ScoredToken
from forgellm.engines.mlx import load, memory
from forgellm.engines.mlx.adapters import attach_adapter, merge_lora
from forgellm.engines.mlx.decoding import SHORTER, BatchDecoder, can_batch
from forgellm.engines.mlx.one_by_one import SingleDecoder, cache_bits
from forgellm.engines.mlx.prefixes import PrefixStore
from forgellm.engines.mlx.scoring import batch_log_probs, prove_packing, score_text
from forgellm.engines.worker import Worker
from forgellm.errors import InvalidRequest
from forgellm.schema.generation import Sampling

# Of the memory that is free once the weights are there, what prompts and answers may be kept in.
_PREFIX_SHARE = 0.25


@dataclass(frozen=True)
class _Wanted:
    """What to load, and how. `adapter` is an adapters file or a full checkpoint's folder."""

    model_path: Path
    adapter: Path | None
    placement: load.Placement
    kv_bits: int | None


@dataclass
class _Gauge:
    """What the worker last said of its memory, to be read without waiting for it."""

    num_bytes: int = 0


class _Opened:
    """A model and the answers it makes. Lives in the worker's thread."""

    def __init__(self, wanted: _Wanted, gauge: _Gauge) -> None:
        memory.set_limits()
        adapter = wanted.adapter
        is_full = adapter is not None and adapter.is_dir()
        folder = adapter if adapter is not None and is_full else wanted.model_path
        self.model, config = load.load_model(folder, wanted.placement.dtype)
        if adapter is not None and not is_full:
            attach_adapter(self.model, adapter)
            merge_lora(self.model)
        self.model.eval()
        self.split = load.split_model(self.model)
        self.vocab_size = load.vocab_size(self.split)
        self._dtype = wanted.placement.dtype
        self._packing_is_proven = False
        prefixes = PrefixStore(int(_PREFIX_SHARE * _free_bytes()))
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


class MlxGenerateEngine:
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
        """`kv_bits` (4 or 8) quantises the key-value cache: answers are then made one by one."""
        wanted = _Wanted(model_path, adapter, load.choose_placement(dtype), kv_bits)
        self._gauge = _Gauge()
        self._worker = Worker(partial(_Opened, wanted, self._gauge), "mlx", memory.end_thread)
        self.info = self._worker.call(lambda opened: opened.info)
        self.max_concurrent = self._worker.call(lambda opened: opened.decoder.max_concurrent)

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
