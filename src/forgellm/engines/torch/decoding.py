"""Answers made token by token, as many at once as there are (continuous batching)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from forgellm.engines.answers import Answer
from forgellm.engines.torch.memory import out_of_memory_named
from forgellm.engines.torch.prefixes import Cache, Prefixes
from forgellm.engines.torch.sampling import Chooser, choose
from forgellm.engines.torch.scoring import scored_tokens

_log = logging.getLogger(__name__)
MAX_CONCURRENT = 16
SHORTER = "Send a shorter prompt, or ask for fewer tokens."
# Prompt tokens between two steps of the answers that run. A GPU wants much at once; a processor would
# be away for too long.
_READ_TOKENS = {"cpu": 256}
_READ_TOKENS_OF_GPUS = 2048

Kept = TypeVar("Kept", bound=Cache)


class Model(Protocol[Kept]):
    """Passes through a model's weights. Logits are float32."""

    def new_cache(self) -> Kept: ...

    def read(self, ids: list[int], cache: Kept) -> Tensor:
        """Put tokens behind what a cache holds; logits [V] of what follows them."""

    def step(self, ids: list[int], caches: Sequence[Kept]) -> Tensor:
        """Put one token behind each of N caches; logits [N, V] of what follows."""


@dataclass(eq=False)
class _Running(Generic[Kept]):
    """An answer that is being made. `unread` are prompt tokens, `said` those of the answer, the last
    of which the cache does not hold yet."""

    answer: Answer
    chooser: Chooser
    cache: Kept
    unread: deque[int]
    said: list[int] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        question = self.answer.question
        is_stop = bool(self.said) and self.said[-1] in question.stop_ids
        return is_stop or len(self.said) == question.max_tokens

    def give(self, token_id: int, logits: Tensor | None) -> None:
        """Hand on a token. A stop id is no part of the answer, but is scored where asked for.

        `logits` [V] are given where scores are asked for, from before any penalty.
        """
        self.said.append(token_id)
        question = self.answer.question
        if logits is not None and question.num_top is not None:
            target = torch.tensor([token_id], device=logits.device)
            self.answer.put(token_id, scored_tokens(logits[None], target, question.num_top)[0])
        elif token_id not in question.stop_ids:
            self.answer.put(token_id, None)


class BatchDecoder(Generic[Kept]):
    """Up to MAX_CONCURRENT answers share each pass through the weights; more wait for their turn.

    New prompts are read in between, some tokens at a time. All answers that run fail together.
    """

    max_concurrent = MAX_CONCURRENT

    def __init__(self, model: Model[Kept], prefixes: Prefixes[Kept], device: torch.device) -> None:
        self._model, self._prefixes, self._device = model, prefixes, device
        self._waiting: deque[Answer] = deque()
        self._running: list[_Running[Kept]] = []
        self._read_tokens = _READ_TOKENS.get(device.type, _READ_TOKENS_OF_GPUS)

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    def insert(self, answer: Answer) -> None:
        self._waiting.append(answer)

    @torch.inference_mode()
    def step(self) -> None:
        try:
            with out_of_memory_named(SHORTER):
                self._remove([each for each in self._running if each.answer.is_closed])
                self._read_prompts()
                self._advance([each for each in self._running if each.said])
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        self._prefixes.clear()

    def _read_prompts(self) -> None:
        """In the order of arrival, one to its end before the next begins, so that the next finds
        what they have in common."""
        room = self._read_tokens
        while room > 0 and (reading := self._next_to_read()) is not None:
            count = min(room, len(reading.unread))
            logits = self._model.read(
                [reading.unread.popleft() for _ in range(count)], reading.cache
            )
            room -= count
            if not reading.unread:
                self._choose(logits[None], [reading])

    def _next_to_read(self) -> _Running[Kept] | None:
        for each in self._running:
            if each.unread:
                return each
        while self._waiting and len(self._running) < MAX_CONCURRENT:
            answer = self._waiting.popleft()
            if not answer.is_closed and (started := self._started(answer)) is not None:
                self._running.append(started)
                return started
        return None

    def _started(self, answer: Answer) -> _Running[Kept] | None:
        prompt = answer.question.prompt_ids
        try:
            with out_of_memory_named(SHORTER):
                chooser = Chooser(answer.question.sampling, prompt, self._device)
                cache = self._prefixes.begin(prompt, self._model.new_cache())
        except Exception as error:
            end_all([answer], error)
            return None
        return _Running(answer, chooser, cache, deque(prompt[len(cache) :]))

    def _advance(self, answering: list[_Running[Kept]]) -> None:
        if answering:
            last = [each.said[-1] for each in answering]
            self._choose(self._model.step(last, [each.cache for each in answering]), answering)

    def _choose(self, logits: Tensor, answering: list[_Running[Kept]]) -> None:
        """One more token for each answer, from its row of logits [N, V]."""
        plain = [
            None if each.answer.question.num_top is None else row.clone()
            for row, each in zip(logits, answering, strict=True)
        ]
        chosen = choose(logits, [each.chooser for each in answering])
        for each, token_id, row in zip(answering, chosen, plain, strict=True):
            each.give(token_id, row)
        self._remove([each for each in answering if each.is_complete])

    def _remove(self, ended: list[_Running[Kept]]) -> None:
        for each in ended:
            self._running.remove(each)
            self._prefixes.end(each.cache)
            each.answer.end()

    def _fail(self, error: Exception) -> None:
        end_all([each.answer for each in self._running], error)
        self._running.clear()
        self._prefixes.clear()


def end_all(answers: Iterable[Answer], error: Exception) -> None:
    """Tell everyone who waits, and the log, which alone has the traceback."""
    _log.error("making answers failed", exc_info=error)
    for answer in answers:
        answer.end(error)
