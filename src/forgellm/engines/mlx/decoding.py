"""Answers made token by token, as many at once as there are, on mlx-lm's continuous batching."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import make_prompt_cache

from forgellm.engines.answers import Answer
from forgellm.engines.mlx.memory import out_of_memory_named
from forgellm.engines.mlx.prefixes import PrefixStore
from forgellm.engines.mlx.sampling import Chooser
from forgellm.engines.mlx.scoring import scored_tokens

_log = logging.getLogger(__name__)
MAX_CONCURRENT = 32
SHORTER = "Send a shorter prompt, or ask for fewer tokens."
# Prompt tokens between two looks at what else there is to do. A GPU wants much at once; a processor
# would be away for minutes.
_PREFILL_TOKENS = {"gpu": 2048, "cpu": 128}


def prefill_tokens() -> int:
    return _PREFILL_TOKENS["cpu" if mx.default_device().type == mx.cpu else "gpu"]


class Float32Logits:
    """A model whose logits are float32, so that neither scores nor ties depend on its own type."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self._model(tokens, cache=cache).astype(mx.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@dataclass(frozen=True, eq=False)
class Running:
    """An answer that is being made, and how its tokens are chosen."""

    answer: Answer
    chooser: Chooser

    def give(self, token_id: int, is_stop: bool) -> None:
        """Hand on a token. A stop id is no part of the answer, but is scored where asked for."""
        num_top = self.answer.question.num_top
        if num_top is not None:
            logits = self.chooser.next_logits()
            self.answer.put(token_id, scored_tokens(logits[None], [token_id], num_top)[0])
        elif not is_stop:
            self.answer.put(token_id, None)


def started(answer: Answer) -> Running:
    question = answer.question
    keep = question.num_top is not None
    return Running(answer, Chooser(question.sampling, question.prompt_ids, keep_logits=keep))


def can_batch(model: nn.Module) -> bool:
    """Whether mlx-lm can put the caches of several answers into one."""
    return all(hasattr(cache, "merge") for cache in make_prompt_cache(model))


def end_all(answers: Iterable[Answer], error: Exception) -> None:
    """Tell everyone who waits, and the log, which alone has the traceback."""
    _log.error("making answers failed", exc_info=error)
    for answer in answers:
        answer.end(error)


class BatchDecoder:
    """Up to MAX_CONCURRENT answers share each pass through the weights; more wait for their turn.

    New prompts are read in between, some tokens at a time. All answers that run fail together.
    """

    max_concurrent = MAX_CONCURRENT

    def __init__(self, model: nn.Module, prefixes: PrefixStore) -> None:
        self._model = Float32Logits(model)
        self._prefixes = prefixes
        self._running: dict[int, Running] = {}
        self._batch = self._new_batch()

    @property
    def is_idle(self) -> bool:
        return not self._running

    @property
    def num_bytes(self) -> int:
        return int(self._batch.prompt_cache_nbytes)

    def insert(self, answer: Answer) -> None:
        question = answer.question
        prompt = question.prompt_ids
        try:
            running = started(answer)
            self._prefixes.make_room(self.num_bytes)
            caches, num_known = self._prefixes.find(prompt)
            [uid] = self._batch.insert(
                [prompt[num_known:]],
                max_tokens=[question.max_tokens],
                caches=[caches],
                all_tokens=[prompt[:num_known]],
                samplers=[running.chooser.sampler],
                logits_processors=[running.chooser.processors],
                stop_sequences=[StopSequences([[stop] for stop in question.stop_ids])],
            )
        except Exception as error:
            end_all([answer], error)
            return
        self._running[uid] = running

    def step(self) -> None:
        try:
            with out_of_memory_named(SHORTER):
                self._remove_closed()
                if self._running:
                    _, responses = self._batch.next()
                    for response in responses:
                        self._hand_on(response)
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        self._batch.close()

    def _hand_on(self, response: Any) -> None:
        running = self._running[response.uid]
        running.give(response.token, response.finish_reason == "stop")
        if response.finish_reason is not None:
            del self._running[response.uid]
            running.answer.end()
            self._keep(response.all_tokens, response.prompt_cache)

    def _remove_closed(self) -> None:
        closed = [uid for uid, running in self._running.items() if running.answer.is_closed]
        if not closed:
            return
        for caches, tokens in self._batch.remove(closed, return_prompt_caches=True).values():
            if tokens:
                self._keep(tokens, caches)
        for uid in closed:
            del self._running[uid]

    def _keep(self, tokens: list[int], caches: list[Any]) -> None:
        self._prefixes.add(tokens, caches, active_bytes=self.num_bytes)

    def _fail(self, error: Exception) -> None:
        end_all([running.answer for running in self._running.values()], error)
        self._running.clear()
        self._prefixes.clear()
        self._batch.close()
        self._batch = self._new_batch()

    def _new_batch(self) -> BatchGenerator:
        return BatchGenerator(
            self._model,
            completion_batch_size=MAX_CONCURRENT,
            prefill_step_size=prefill_tokens(),
        )
