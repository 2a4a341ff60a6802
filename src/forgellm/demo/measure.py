"""The figures of the demo, measured the same way before and after."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from forgellm.data.batches import Batch
from forgellm.data.tokenizer import Tokenizer
from forgellm.demo.lessons import ASSETS
from forgellm.engines.base import GenerateEngine
from forgellm.evaluation.answering import answer_to, is_right
from forgellm.evaluation.probe_files import Probe, read_probes
from forgellm.evaluation.probes import score_probes
from forgellm.evaluation.scoring import likelihoods, mean_loss, windows
from forgellm.evaluation.suite import SHIPPED_GENERAL as GENERAL_HELD_OUT

PROBES = ASSETS / "handbook_probes.json"


@dataclass(frozen=True)
class Answer:
    """What the model said to a question, and whether the right answer is in it."""

    question: str
    expected: str
    said: str
    is_right: bool


@dataclass(frozen=True)
class Measurement:
    """Losses in nats per token; probe figures from 0 to 1."""

    held_out_loss: float
    general_loss: float
    probe_accuracy: float
    probe_error: float
    probe_confidence: float
    num_probes: int
    answers: tuple[Answer, ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Measurement:
        return cls(**{**values, "answers": tuple(Answer(**item) for item in values["answers"])})

    @property
    def answered(self) -> tuple[float, float]:
        """The share of questions answered right, and its standard error."""
        share = sum(answer.is_right for answer in self.answers) / len(self.answers)
        return share, math.sqrt(share * (1 - share) / len(self.answers))


def measure(
    engine: GenerateEngine, tokenizer: Tokenizer, held_out: Iterable[Batch], num_questions: int
) -> Measurement:
    """`held_out` are the batches that the run validates on."""
    log_probs, num_tokens = 0.0, 0
    for batch in held_out:
        log_probs += float(engine.token_log_probs(batch).sum(dtype="float64"))
        num_tokens += batch.num_targets
    texts = [file.read_text("utf-8") for file in sorted(GENERAL_HELD_OUT.glob("*.md"))]
    passages = [passage for text in texts for passage in windows(tokenizer, text)]
    probes = read_probes(PROBES)
    score = score_probes(engine, tokenizer, probes)
    asked = probes[:: len(probes) // num_questions][:num_questions] if num_questions else []
    return Measurement(
        held_out_loss=-log_probs / num_tokens,
        general_loss=mean_loss(likelihoods(engine, passages)),
        probe_accuracy=score.accuracy,
        probe_error=score.standard_error,
        probe_confidence=score.confidence,
        num_probes=len(score.right),
        answers=tuple(_ask(engine, tokenizer, probe) for probe in asked),
    )


def _ask(engine: GenerateEngine, tokenizer: Tokenizer, probe: Probe) -> Answer:
    said = answer_to(engine, tokenizer, probe.question)
    right = is_right(said, [probe.answer], whole=False)
    return Answer(probe.question, probe.answer, said, right)
