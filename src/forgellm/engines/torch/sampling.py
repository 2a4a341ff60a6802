"""The next tokens of several answers at once, each chosen by its own settings, seed and past.

Letters: N answers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forgellm.schema.generation import Sampling

_FEW = 256  # tokens among which nearly every `top_p` is reached


class Chooser:
    """What the choices of one answer depend on: settings, random state, the text so far."""

    def __init__(self, sampling: Sampling, prompt_ids: list[int], device: torch.device) -> None:
        self.sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)
        self._has_penalties = bool(
            sampling.repetition_penalty != 1
            or sampling.frequency_penalty
            or sampling.presence_penalty
        )
        # The tokens of the text, each once, and how often each was answered.
        self._places = {token: place for place, token in enumerate(dict.fromkeys(prompt_ids))}
        room = len(self._places) + sampling.max_tokens if self._has_penalties else 0
        self._seen = torch.zeros(min(room, 1 << 20), dtype=torch.int64, device=device)
        self._said = torch.zeros(len(self._seen), device=device)
        if self._has_penalties:
            self._seen[: len(self._places)] = torch.tensor(list(self._places), device=device)

    def draw(self) -> float:
        """A uniform number of [0, 1): the one that an answer's next token depends on."""
        return float(torch.rand((), dtype=torch.float64, generator=self._random))

    def add(self, token_id: int) -> None:
        if self._has_penalties:
            place = self._places.setdefault(token_id, len(self._places))
            self._seen[place] = token_id
            self._said[place] += 1

    def penalise(self, logits: Tensor) -> None:
        """Change logits [V]: first for what was said, then for what is in the text.

        The repetition penalty divides positive and multiplies negative logits (Keskar et al. 2019,
        CTRL, arXiv 1909.05858).
        """
        if not self._has_penalties:
            return
        settings, seen = self.sampling, self._seen[: len(self._places)]
        said, found = self._said[: len(seen)], logits[seen]
        found = found - settings.frequency_penalty * said - settings.presence_penalty * (said > 0)
        penalty = settings.repetition_penalty
        logits[seen] = torch.where(found > 0, found / penalty, found * penalty)


def choose(logits: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """A token for each row of logits [N, V] float32, which are changed by the penalties."""
    for row, chooser in zip(logits, choosers, strict=True):
        chooser.penalise(row)
    drawing = [n for n, chooser in enumerate(choosers) if chooser.sampling.temperature > 0]
    chosen: list[int]
    if len(drawing) == len(choosers):
        chosen = _drawn(logits, choosers)
    else:
        chosen = logits.argmax(-1).tolist()
        if drawing:
            found = _drawn(logits[drawing], [choosers[n] for n in drawing])
            for n, token_id in zip(drawing, found, strict=True):
                chosen[n] = token_id
    for chooser, token_id in zip(choosers, chosen, strict=True):
        chooser.add(token_id)
    return chosen


def _drawn(logits: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """By inversion of the cumulated probabilities, in the order of token ids: rounding then changes
    a choice only where the drawn number falls between two tokens."""

    def column(values: list[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

    settings = [chooser.sampling for chooser in choosers]
    probs = (logits / column([s.temperature for s in settings], torch.float32)).softmax(-1)
    if any(s.top_p < 1 for s in settings):
        least = _least_inside(probs, column([s.top_p for s in settings], torch.float32))
        probs = probs.masked_fill_(probs < least, 0)
    sums = probs.cumsum(-1, dtype=torch.float64)
    drawn = column([chooser.draw() for chooser in choosers], torch.float64) * sums[:, -1:]
    found: list[int] = torch.searchsorted(sums, drawn, right=True)[:, 0].tolist()
    return found


def _least_inside(probs: Tensor, top_p: Tensor) -> Tensor:
    """[N, 1]: the least probability in the smallest set that has the mass `top_p` (Holtzman et al.
    2019, arXiv 1904.09751). Sorting the whole vocabulary takes longer than a small model's pass."""
    for size in (min(_FEW, probs.shape[-1]), probs.shape[-1]):
        ordered = probs.topk(size).values
        mass = ordered.cumsum(-1)
        if size == probs.shape[-1] or bool((mass[:, -1:] >= top_p).all()):
            break
    num_inside = (mass - ordered < top_p).sum(-1, keepdim=True)
    least = ordered.gather(-1, num_inside - 1)
    return torch.where(top_p < 1, least, 0)
