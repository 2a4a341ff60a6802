"""A model in a worker's thread, as one that answers: what the engines' `GenerateEngine`s have in common."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forgellm.data.batches import Batch
from forgellm.engines.answers import Answer, Question, Token
from forgellm.engines.base import EngineInfo, ScoredToken
from forgellm.engines.worker import OnEnd, Steps, Worker
from forgellm.errors import InvalidRequest
from forgellm.schema.generation import Sampling

# Of the memory that is free once the weights are there, what prompts and answers may be kept in.
PREFIX_SHARE = 0.25


@dataclass
class Gauge:
    """What the worker last said of its memory, to be read without waiting for it."""

    num_bytes: int = 0


class Opened(Steps, Protocol):
    """A model and the answers it makes. `decoder` takes new ones by `insert`."""

    info: EngineInfo
    decoder: Any

    def score(self, ids: list[int], num_top: int) -> list[ScoredToken]: ...

    def token_log_probs(self, batch: Batch) -> NDArray[np.float32]: ...


class ServedModel:
    """See `engines.base.GenerateEngine`. May be used by several threads at once.

    The model itself is known only to the worker's thread, which ends when this object is gone. An
    adapter is merged into plain weights when loaded, and stays beside quantised ones.
    """

    def __init__(self, open_model: Callable[[Gauge], Opened], name: str, on_end: OnEnd) -> None:
        """`name` and `on_end` as for `Worker`. Raises what `open_model` raises."""
        gauge = Gauge()
        self._gauge = gauge
        self._worker: Worker[Opened] = Worker(lambda: open_model(gauge), name, on_end)
        self.info = self._worker.call(lambda opened: opened.info)
        self.max_concurrent: int = self._worker.call(lambda opened: opened.decoder.max_concurrent)

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
