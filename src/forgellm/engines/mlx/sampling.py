"""The next token of one answer, chosen as the torch engine chooses it (`engines/torch/sampling`).

Every answer has a `Chooser` of its own, so that its seed and its penalties are its own whatever
else the model answers meanwhile.

Letters: V vocabulary.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable

import mlx.core as mx
from mlx_lm.sample_utils import greedy_sampler

from forgellm.schema.generation import Sampling

# (tokens so far, logits [1, V]) -> logits [1, V]
Processor = Callable[[mx.array, mx.array], mx.array]
# log-probabilities [1, V] -> token [1]
Sampler = Callable[[mx.array], mx.array]


class Chooser:
    """Penalties and sampling of one answer, in the two parts that mlx-lm asks for.

    What was seen and said is kept as one array of V each, so that a token of a long text costs no
    more than one of a short text. Nothing here waits for the device.
    """

    def __init__(self, sampling: Sampling, prompt_ids: list[int], *, keep_logits: bool) -> None:
        """With `keep_logits`, `next_logits` has each token's logits before any penalty."""
        self._sampling = sampling
        self._prompt = mx.array(prompt_ids)
        self._seen: mx.array | None = None
        self._said: mx.array | None = None
        self._kept: deque[mx.array] | None = deque() if keep_logits else None
        self._seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
        self._num_chosen = 0

    @property
    def processors(self) -> list[Processor]:
        has_work = _has_penalties(self._sampling) or self._kept is not None
        return [self._process] if has_work else []

    @property
    def sampler(self) -> Sampler:
        """Greedy answers share one function: mlx-lm then calls it once for all of them."""
        sampler: Sampler = greedy_sampler if self._sampling.temperature == 0 else self._choose
        return sampler

    def next_logits(self) -> mx.array:
        """[V] logits that the oldest token not asked for yet was chosen from, unchanged."""
        assert self._kept is not None
        return self._kept.popleft()

    def _process(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if self._kept is not None:
            self._kept.append(logits[0])
        if not _has_penalties(self._sampling):
            return logits
        if self._seen is None or self._said is None:
            self._seen = mx.zeros(logits.shape[-1], dtype=mx.bool_)
            self._seen[self._prompt] = True
            self._said = mx.zeros(logits.shape[-1])
        else:
            self._seen[tokens[-1:]] = True
            self._said = self._said.at[tokens[-1:]].add(1)
        return penalised(logits, self._sampling, self._seen, self._said)

    def _choose(self, log_probs: mx.array) -> mx.array:
        # The randomness of a token depends on the seed and the token's number alone.
        key = mx.random.key(self._seed << 32 | self._num_chosen)
        self._num_chosen += 1
        return sample(log_probs, self._sampling.temperature, self._sampling.top_p, key)


def _has_penalties(sampling: Sampling) -> bool:
    return bool(
        sampling.repetition_penalty != 1 or sampling.frequency_penalty or sampling.presence_penalty
    )


def penalised(logits: mx.array, sampling: Sampling, seen: mx.array, said: mx.array) -> mx.array:
    """Logits [..., V] less the penalties: first for what was said, then for what was seen.

    seen [V] bool marks tokens already in the text; said [V]: how often each was answered. The
    repetition penalty divides positive and multiplies negative logits (Keskar et al. 2019, CTRL,
    arXiv 1909.05858).
    """
    if sampling.frequency_penalty or sampling.presence_penalty:
        logits = logits - sampling.frequency_penalty * said - sampling.presence_penalty * (said > 0)
    penalty = sampling.repetition_penalty
    if penalty == 1:
        return logits
    return mx.where(seen, mx.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(log_probs: mx.array, temperature: float, top_p: float, key: mx.array) -> mx.array:
    """One token for each row of [N, V] float32; temperature above 0.

    `top_p` keeps the smallest set of that mass, after the temperature (Holtzman et al. 2019, arXiv
    1904.09751), always at least one token. Noise is drawn for each token id, so that rounding,
    which changes with what is computed beside, changes a choice only where two are nearly tied.
    """
    scaled = log_probs / temperature
    if top_p < 1:
        probabilities = mx.softmax(scaled, axis=-1)
        rising = mx.sort(probabilities, axis=-1)
        mass_above = mx.cumsum(rising, axis=-1, reverse=True, inclusive=False)
        num_outside = (mass_above >= top_p).sum(axis=-1, keepdims=True)
        least = mx.take_along_axis(rising, num_outside, axis=-1)
        scaled = mx.where(probabilities < least, -mx.inf, scaled)
    return mx.random.categorical(scaled, key=key)
