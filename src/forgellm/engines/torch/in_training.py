"""The model of a training engine as one that answers, in the thread that trains it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forgellm.data.batches import Batch
from forgellm.engines.base import EngineInfo, ScoredToken
from forgellm.engines.torch import load
from forgellm.engines.torch.decoding import SHORTER
from forgellm.engines.torch.memory import held_bytes, out_of_memory_named
from forgellm.engines.torch.own_code import own_code
from forgellm.engines.torch.sampling import Chooser, choose
from forgellm.engines.torch.scoring import batch_log_probs, score_text, scored_tokens
from forgellm.errors import InvalidRequest
from forgellm.schema.generation import Sampling


class TorchAnswers:
    """What `engines.base.GenerateEngine` asks for, by the model's own code, without a thread and one
    answer at a time."""

    max_concurrent = 1

    def __init__(self, model: Any, place: load.Placement, info: EngineInfo) -> None:
        self._model, self._place, self.info = model, place, info

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, stop_ids: frozenset[int]
    ) -> Iterator[int]:
        for chosen, _ in self._decode(prompt_ids, sampling):
            if chosen in stop_ids:
                return
            yield chosen

    def generate_scored(
        self, prompt_ids: list[int], sampling: Sampling, stop_ids: frozenset[int], num_top: int
    ) -> Iterator[ScoredToken]:
        for chosen, logits in self._decode(prompt_ids, sampling):
            target = torch.tensor([chosen], device=logits.device)
            yield scored_tokens(logits[None], target, num_top)[0]
            if chosen in stop_ids:
                return

    @torch.inference_mode()
    def score(self, ids: list[int], num_top: int) -> list[ScoredToken]:
        with out_of_memory_named(SHORTER):
            return score_text(self._model, ids, num_top, self._place.device, self._place.dtype)

    @torch.inference_mode()
    def _decode(
        self, prompt_ids: list[int], sampling: Sampling
    ) -> Generator[tuple[int, Tensor], None, None]:
        """Each token with the logits [V] float32 that it was chosen from, without an end of text."""
        if not prompt_ids:
            raise InvalidRequest("The prompt is empty.", suggestion="Send at least one character.")
        chooser = Chooser(sampling, prompt_ids, self._place.device)
        model = own_code(self._model)
        cache, unread = model.new_cache(), prompt_ids
        for _ in range(min(sampling.max_tokens, self.info.context_length - len(prompt_ids))):
            with out_of_memory_named(SHORTER):
                logits = model.read(unread, cache)
            [chosen] = choose(logits.clone()[None], [chooser])
            yield chosen, logits
            unread = [chosen]

    def token_log_probs(self, batch: Batch) -> NDArray[np.float32]:
        return batch_log_probs(self._model, batch, self._place.device, self._place.dtype)

    def memory_bytes(self) -> int:
        return held_bytes(self._model)
