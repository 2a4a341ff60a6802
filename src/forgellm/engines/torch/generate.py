"""The torch generation engine: a cache, a sampler, and token scores."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from forgellm.data.batches import Batch
from forgellm.engines.base import EngineInfo, ScoredToken
from forgellm.engines.torch import load
from forgellm.engines.torch.adapters import attach_adapter
from forgellm.engines.torch.lora import merge_lora
from forgellm.engines.torch.memory import out_of_memory_named
from forgellm.engines.torch.quantised import num_parameters
from forgellm.engines.torch.scoring import batch_log_probs, score_text, scored_tokens
from forgellm.errors import ConfigError, InvalidRequest
from forgellm.schema.generation import Sampling

_SHORTER = "Send a shorter prompt, or ask for fewer tokens."


class TorchAnswers:
    """What `engines.base.GenerateEngine` asks for, of a model that someone else holds."""

    max_concurrent = 1

    def __init__(self, model: Any, place: load.Placement, info: EngineInfo) -> None:
        self.model, self._place, self.info = model, place, info

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
        with out_of_memory_named(_SHORTER):
            return score_text(self.model, ids, num_top, self._place.device, self._place.dtype)

    @torch.inference_mode()
    def _decode(
        self, prompt_ids: list[int], sampling: Sampling
    ) -> Generator[tuple[int, Tensor], None, None]:
        """Each token with the logits [V] float32 that it was chosen from, without an end of text."""
        if not prompt_ids:
            raise InvalidRequest("The prompt is empty.", suggestion="Send at least one character.")
        device = self._place.device
        generator = torch.Generator(device)
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        room = self.info.context_length - len(prompt_ids)
        cache = DynamicCache(config=self.model.config)
        tokens = torch.tensor([prompt_ids], device=device)
        vocab_size = self.model.config.get_text_config().vocab_size
        seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        seen[tokens[0]] = True
        said = torch.zeros(vocab_size, device=device)
        for _ in range(min(sampling.max_tokens, room)):
            with out_of_memory_named(_SHORTER):
                logits = self.model(
                    input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1
                ).logits[0, -1]
            logits = logits.float()
            chosen = sample(without_repeats(logits, sampling, said), sampling, seen, generator)
            yield chosen, logits
            seen[chosen] = True
            said[chosen] += 1
            tokens = torch.tensor([[chosen]], device=device)

    def token_log_probs(self, batch: Batch) -> NDArray[np.float32]:
        return batch_log_probs(self.model, batch, self._place.device, self._place.dtype)

    def memory_bytes(self) -> int:
        seen: dict[int, int] = {}
        tensors: list[Any] = [*self.model.parameters(), *self.model.buffers()]
        for tensor in tensors:
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return sum(seen.values())


class TorchGenerateEngine(TorchAnswers):
    """A model of its own. An adapter is merged into the weights when loaded."""

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
        place = load.choose_placement(dtype)
        full_checkpoint = adapter is not None and adapter.is_dir()
        source = adapter if adapter is not None and full_checkpoint else model_path
        model = load.load_model(source, place.dtype, place.device)
        if adapter is not None and not full_checkpoint:
            attach_adapter(model, adapter)
            merge_lora(model)
        model.eval().requires_grad_(False)
        info = EngineInfo(
            engine="torch",
            device=place.device.type,
            dtype=place.dtype_name,
            dtype_reason=place.reason,
            num_parameters=num_parameters(model),
            num_trainable=0,
            context_length=load.context_length(model),
            versions=load.versions(),
        )
        super().__init__(model, place, info)


def without_repeats(logits: Tensor, sampling: Sampling, said: Tensor) -> Tensor:
    """Logits [V] less the frequency and presence penalties. said [V]: how often each was said."""
    if not sampling.frequency_penalty and not sampling.presence_penalty:
        return logits
    return logits - sampling.frequency_penalty * said - sampling.presence_penalty * (said > 0)


def sample(logits: Tensor, sampling: Sampling, seen: Tensor, generator: torch.Generator) -> int:
    """The next token's id. logits [V] float32; seen [V] bool marks tokens already in the text.

    The penalty divides positive and multiplies negative logits (Keskar et al. 2019, CTRL, arXiv
    1909.05858); `top_p` keeps the smallest set of that mass (Holtzman et al. 2019, arXiv
    1904.09751), always at least one token.
    """
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, penalised, logits)
    if sampling.temperature == 0:
        return int(logits.argmax())
    probs = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probs.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        probs = torch.zeros_like(probs).scatter_(-1, order, ordered.masked_fill_(outside, 0))
    return int(torch.multinomial(probs, 1, generator=generator))
