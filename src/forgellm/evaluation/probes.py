"""Does a model know a fact? It chooses among endings by likelihood, or answers in its own words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine
from forgellm.evaluation.answering import answer_to, is_right
from forgellm.evaluation.probe_files import Probe
from forgellm.evaluation.scoring import Passage, likelihoods, no_step


@dataclass(frozen=True)
class ProbeScore:
    """Share of probes answered right, with its standard error, and the mean probability given to
    the right ending among the options (NaN where no probe has options)."""

    accuracy: float
    standard_error: float
    confidence: float
    right: tuple[bool, ...]


def score_probes(
    engine: GenerateEngine,
    tokenizer: Tokenizer,
    probes: Sequence[Probe],
    on_step: Callable[[], None] = no_step,
) -> ProbeScore:
    """`on_step` is called before each piece of work, and may end it with an exception."""
    choices = [probe for probe in probes if probe.match == "choice"]
    confidences = choice_confidences(engine, tokenizer, choices, on_step)
    chosen = iter(confidences)
    right = []
    for probe in probes:
        if probe.match == "choice":
            right.append(next(chosen)[0])
        else:
            on_step()
            said = answer_to(engine, tokenizer, probe.question, probe.stem)
            right.append(is_right(said, probe.answers, whole=probe.match == "exact"))
    accuracy = sum(right) / len(right)
    error = math.sqrt(accuracy * (1 - accuracy) / len(right))
    confidence = sum(c for _, c in confidences) / len(confidences) if confidences else math.nan
    return ProbeScore(accuracy, error, confidence, tuple(right))


def choice_confidences(
    engine: GenerateEngine,
    tokenizer: Tokenizer,
    probes: Sequence[Probe],
    on_step: Callable[[], None] = no_step,
) -> list[tuple[bool, float]]:
    """Whether each probe's right ending is the likeliest, and its probability among the options.

    An ending counts by its mean log-probability per character, so that length does not.
    """
    passages = [_passage(tokenizer, p.stem, option) for p in probes for option in p.options]
    found = iter(likelihoods(engine, passages, on_step))
    return [_chosen(probe, (next(found).log_prob for _ in probe.options)) for probe in probes]


def _chosen(probe: Probe, log_probs: Iterator[float]) -> tuple[bool, float]:
    scores = [
        log_prob / len(option) for option, log_prob in zip(probe.options, log_probs, strict=True)
    ]
    weights = [math.exp(len(probe.answer) * (score - max(scores))) for score in scores]
    return scores[0] > max(scores[1:]), weights[0] / sum(weights)


def _passage(tokenizer: Tokenizer, stem: str, option: str) -> Passage:
    """Encoded at once, as some tokenizers put a space in front of every text of its own."""
    text = f"{stem} {option}"
    (found,) = tokenizer.encode_spans([text], [[(len(stem), len(text))]])
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = [*start, *np.frombuffer(found.ids, "<u4").tolist()]
    return Passage(ids, first_counted=len(ids) - max(1, sum(found.trained)))
