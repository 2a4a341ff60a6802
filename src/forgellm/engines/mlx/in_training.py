"""The model of a training engine as one that answers, in the thread that trains it."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from numpy.typing import NDArray

from forgellm.data.batches import Batch
from forgellm.engines.base import EngineInfo, ScoredToken
from forgellm.engines.mlx.decoding import SHORTER, Float32Logits, prefill_tokens
from forgellm.engines.mlx.load import SplitModel
from forgellm.engines.mlx.memory import out_of_memory_named
from forgellm.engines.mlx.sampling import Chooser
from forgellm.engines.mlx.scoring import batch_log_probs, score_text, scored_tokens
from forgellm.schema.generation import Sampling


class MlxAnswers:
    """What `engines.base.GenerateEngine` asks for, without a thread and one answer at a time.

    `MlxGenerateEngine` computes in a thread of its own, whose streams cannot have the arrays of
    the thread that trains.
    """

    max_concurrent = 1

    def __init__(self, split: SplitModel, vocab_size: int, info: EngineInfo) -> None:
        self._split, self._vocab_size, self.info = split, vocab_size, info

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, stop_ids: frozenset[int]
    ) -> Iterator[int]:
        chooser = Chooser(sampling, prompt_ids, keep_logits=False)
        for token_id in self._steps(prompt_ids, sampling, chooser):
            if token_id in stop_ids:
                return
            yield token_id

    def generate_scored(
        self, prompt_ids: list[int], sampling: Sampling, stop_ids: frozenset[int], num_top: int
    ) -> Iterator[ScoredToken]:
        chooser = Chooser(sampling, prompt_ids, keep_logits=True)
        for token_id in self._steps(prompt_ids, sampling, chooser):
            yield scored_tokens(chooser.next_logits()[None], [token_id], num_top)[0]
            if token_id in stop_ids:
                return

    def score(self, ids: list[int], num_top: int) -> list[ScoredToken]:
        with out_of_memory_named(SHORTER):
            return score_text(self._split, ids, num_top, self._vocab_size)

    def token_log_probs(self, batch: Batch) -> NDArray[np.float32]:
        with out_of_memory_named():
            return batch_log_probs(self._split, batch, self._vocab_size)

    def memory_bytes(self) -> int:
        return sum(value.nbytes for _, value in tree_flatten(self._split.model.parameters()))

    def _steps(self, prompt_ids: list[int], sampling: Sampling, chooser: Chooser) -> Iterator[int]:
        room = self.info.context_length - len(prompt_ids)
        if min(sampling.max_tokens, room) < 1:
            return
        with out_of_memory_named(SHORTER):
            for token_id, _ in generate_step(
                mx.array(prompt_ids),
                Float32Logits(self._split.model),
                max_tokens=min(sampling.max_tokens, room),
                prompt_cache=make_prompt_cache(self._split.model),
                prefill_step_size=prefill_tokens(),
                sampler=chooser.sampler,
                logits_processors=chooser.processors,
            ):
                yield int(token_id)
