"""Does a model know a fact? Multiple choice by likelihood, so that no answer need be generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine
from forgellm.errors import DataError
from forgellm.evaluation.scoring import Passage, likelihoods


@dataclass(frozen=True)
class Probe:
    """A statement cut before its end, the right ending and wrong ones."""

    question: str
    stem: str
    answer: str
    distractors: tuple[str, ...]

    @property
    def options(self) -> tuple[str, ...]:
        return (self.answer, *self.distractors)


@dataclass(frozen=True)
class ProbeScore:
    """Share of probes whose right ending is the likeliest, with its standard error, and the mean
    probability given to the right ending among the options."""

    accuracy: float
    standard_error: float
    confidence: float
    right: tuple[bool, ...]


def read_probes(file: Path) -> list[Probe]:
    """Raises DataError if the file is not a probe file."""
    try:
        items = orjson.loads(file.read_bytes())["probes"]
        return [
            Probe(item["question"], item["stem"], item["answer"], tuple(item["distractors"]))
            for item in items
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file.name} is not a probe file: {error}") from error


def score_probes(
    engine: GenerateEngine, tokenizer: Tokenizer, probes: Sequence[Probe]
) -> ProbeScore:
    """Each ending counts by its mean log-probability per character, so that length does not."""
    passages = [_passage(tokenizer, p.stem, option) for p in probes for option in p.options]
    found = iter(likelihoods(engine, passages))
    right, confidences = [], []
    for probe in probes:
        scores = [next(found).log_prob / len(option) for option in probe.options]
        right.append(scores[0] > max(scores[1:]))
        weights = [math.exp(len(probe.answer) * (score - max(scores))) for score in scores]
        confidences.append(weights[0] / sum(weights))
    accuracy = sum(right) / len(right)
    error = math.sqrt(accuracy * (1 - accuracy) / len(right))
    return ProbeScore(accuracy, error, sum(confidences) / len(confidences), tuple(right))


def _passage(tokenizer: Tokenizer, stem: str, option: str) -> Passage:
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    before = [*start, *tokenizer.encode(stem)]
    return Passage([*before, *tokenizer.encode(" " + option)], first_counted=len(before))
