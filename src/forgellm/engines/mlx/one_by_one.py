"""One answer after the other, for caches that mlx-lm cannot put into one batch.

Those are caches in 4 or 8 bits, which take less memory a token, and those of a few architectures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from forgellm.engines.answers import Answer
from forgellm.engines.mlx.decoding import (
    SHORTER,
    Float32Logits,
    Running,
    end_all,
    prefill_tokens,
    started,
)
from forgellm.engines.mlx.memory import out_of_memory_named
from forgellm.engines.mlx.prefixes import PrefixStore
from forgellm.errors import ConfigError


@dataclass(frozen=True)
class CacheBits:
    """A number is kept in `bits`, and `group_size` numbers share a scale."""

    bits: int
    group_size: int


def cache_bits(model: nn.Module, bits: int) -> CacheBits:
    """What fits a model's heads, tried out. Raises ConfigError where nothing does."""
    for group_size in (64, 32):
        chosen = CacheBits(bits, group_size)
        try:
            list(_steps(Float32Logits(model), [1, 2], make_prompt_cache(model), 1, chosen))
        except (AttributeError, NotImplementedError, RuntimeError, ValueError):
            continue
        return chosen
    raise ConfigError.one(
        "kv_bits", "this model's cache cannot be quantised", suggestion="Load it without kv_bits."
    )


def _steps(
    model: Float32Logits,
    prompt: list[int],
    caches: list[Any],
    max_tokens: int,
    chosen: CacheBits | None,
    **choice: Any,
) -> Generator[tuple[int, mx.array]]:
    steps: Generator[tuple[int, mx.array]] = generate_step(
        mx.array(prompt),
        model,
        max_tokens=max_tokens,
        prompt_cache=caches,
        prefill_step_size=prefill_tokens(),
        kv_bits=chosen.bits if chosen else None,
        kv_group_size=chosen.group_size if chosen else 64,
        quantized_kv_start=0,
        **choice,
    )
    return steps


@dataclass(eq=False)
class _Current:
    """`caches` hold `tokens`: the prompt, and what was answered so far."""

    running: Running
    steps: Generator[tuple[int, mx.array]]
    caches: list[Any]
    tokens: list[int]


class SingleDecoder:
    """See `decoding.BatchDecoder`. Without `chosen`, caches are in the model's own type."""

    max_concurrent = 1

    def __init__(
        self, model: nn.Module, prefixes: PrefixStore, chosen: CacheBits | None = None
    ) -> None:
        self._model = Float32Logits(model)
        self._prefixes = prefixes
        self._bits = chosen
        self._waiting: deque[Answer] = deque()
        self._current: _Current | None = None

    @property
    def is_idle(self) -> bool:
        return self._current is None and not self._waiting

    @property
    def num_bytes(self) -> int:
        return sum(cache.nbytes for cache in self._current.caches) if self._current else 0

    def insert(self, answer: Answer) -> None:
        self._waiting.append(answer)

    def step(self) -> None:
        try:
            with out_of_memory_named(SHORTER):
                if self._current is None:
                    self._current = self._next()
                elif self._current.running.answer.is_closed:
                    self._end(self._current)
                else:
                    self._advance(self._current)
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        if self._current is not None:
            self._current.steps.close()

    def _next(self) -> _Current | None:
        answer = self._waiting.popleft()
        if answer.is_closed:
            return None
        question = answer.question
        try:
            running = started(answer)
            caches, num_known = self._prefixes.find(question.prompt_ids)
            if caches is None:
                caches = make_prompt_cache(self._model)
            steps = _steps(
                self._model,
                question.prompt_ids[num_known:],
                caches,
                question.max_tokens,
                self._bits,
                sampler=running.chooser.sampler,
                logits_processors=running.chooser.processors,
            )
        except Exception as error:
            end_all([answer], error)
            return None
        return _Current(running, steps, caches, list(question.prompt_ids))

    def _advance(self, current: _Current) -> None:
        question = current.running.answer.question
        token_id, _ = next(current.steps)
        is_stop = token_id in question.stop_ids
        current.tokens.append(token_id)
        current.running.give(token_id, is_stop)
        num_made = len(current.tokens) - len(question.prompt_ids)
        if is_stop or num_made == question.max_tokens:
            current.running.answer.end()
            self._end(current)

    def _end(self, current: _Current) -> None:
        self._current = None
        current.steps.close()
        if len(current.tokens) > len(current.running.answer.question.prompt_ids):
            self._prefixes.add(current.tokens, current.caches)

    def _fail(self, error: Exception) -> None:
        if self._current is not None:
            end_all([self._current.running.answer], error)
        self._current = None
        self._prefixes.clear()
