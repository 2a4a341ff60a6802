"""A model measured against a suite: how much it knows, and what it has forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TypeVar

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine
from forgellm.evaluation.answering import SAMPLE_TOKENS, greedy
from forgellm.evaluation.intervals import error_of_mean, wilson_interval
from forgellm.evaluation.probes import choice_confidences, score_probes
from forgellm.evaluation.scoring import Likelihood, likelihoods, mean_loss, no_step, windows
from forgellm.evaluation.suite import GeneralText, ProbeFile, Suite
from forgellm.paths import iso_utc
from forgellm.schema.evaluation import EvaluationLine, GeneralFigures, ProbeFigures, SampleLine


class Measurer:
    """Measures one model's weights, which may change between two calls.

    `on_step` is called before each piece of work, and may end the measurement with an exception.
    """

    def __init__(
        self, tokenizer: Tokenizer, suite: Suite, on_step: Callable[[], None] = no_step
    ) -> None:
        self._tokenizer, self._suite, self._on_step = tokenizer, suite, on_step

    def first(self, engine: GenerateEngine, iteration: int = 0) -> EvaluationLine:
        """Measured twice, for the noise floor: the second time with all items in reversed order,
        and so in other rows beside other neighbours, where numbers are rounded in other places."""
        line = self.line(engine, iteration)
        pairs = zip(line.probes, self._suite.probe_files, strict=True)
        probes = [f.model_copy(update={"noise_floor": self._floor(engine, f, p)}) for f, p in pairs]
        general = [
            figures.model_copy(update={"noise_floor": self._loss_floor(engine, figures, text)})
            for figures, text in zip(line.general, self._suite.general, strict=True)
        ]
        return line.model_copy(update={"probes": probes, "general": general})

    def line(
        self, engine: GenerateEngine, iteration: int, start: EvaluationLine | None = None
    ) -> EvaluationLine:
        """`start`: what the same run measured before its first update, for the changes."""
        started = perf_counter()
        probes = [self._probes(engine, file, start) for file in self._suite.probe_files]
        general = [self._general(engine, text, start) for text in self._suite.general]
        return EvaluationLine(
            iteration=iteration,
            probes=probes,
            general=general,
            seconds=round(perf_counter() - started, 3),
            timestamp=iso_utc(),
        )

    def samples(self, engine: GenerateEngine, iteration: int) -> list[SampleLine]:
        """The likeliest answers to the prompts, as a chat would give them where the model can."""
        lines = []
        for prompt in self._suite.sample_prompts:
            self._on_step()
            said = greedy(engine, self._tokenizer, prompt, plain=None, max_tokens=SAMPLE_TOKENS)
            lines.append(
                SampleLine(
                    iteration=iteration,
                    prompt=prompt,
                    answer=said.response,
                    finish_reason=said.finish_reason,
                    timestamp=iso_utc(),
                )
            )
        return lines

    def _probes(
        self, engine: GenerateEngine, file: ProbeFile, start: EvaluationLine | None
    ) -> ProbeFigures:
        score = score_probes(engine, self._tokenizer, file.probes, self._on_step)
        low, high = wilson_interval(sum(score.right), len(score.right))
        figures = ProbeFigures(
            file=file.name,
            fingerprint=file.fingerprint,
            num_probes=len(score.right),
            accuracy=score.accuracy,
            standard_error=score.standard_error,
            accuracy_low=low,
            accuracy_high=high,
            confidence=_finite(score.confidence),
            right="".join("01"[is_right] for is_right in score.right),
        )
        before = _same(figures, start.probes) if start else None
        if before is None:
            return figures
        changes = [int(b) - int(a) for a, b in zip(before.right, figures.right, strict=True)]
        return figures.model_copy(
            update={
                "noise_floor": before.noise_floor,
                "change": sum(changes) / len(changes),
                "change_standard_error": error_of_mean(changes),
            }
        )

    def _general(
        self, engine: GenerateEngine, text: GeneralText, start: EvaluationLine | None
    ) -> GeneralFigures:
        found = self._document_scores(engine, text.documents)
        num_tokens = [item.num_tokens for item in found]
        losses = [mean_loss([item]) for item in found]
        figures = GeneralFigures(
            file=text.name,
            fingerprint=text.fingerprint,
            num_documents=len(found),
            num_tokens=sum(num_tokens),
            loss=_finite(mean_loss(found)),
            standard_error=_finite(error_of_mean(losses, num_tokens)),
            losses=[_finite(loss) for loss in losses],
        )
        before = _same(figures, start.general) if start else None
        if before is None or figures.loss is None or before.loss is None:
            return figures
        pairs = zip(before.losses, losses, strict=True)
        changes = [math.nan if a is None else b - a for a, b in pairs]
        return figures.model_copy(
            update={
                "noise_floor": before.noise_floor,
                "change": figures.loss - before.loss,
                "change_standard_error": _finite(error_of_mean(changes, num_tokens)),
            }
        )

    def _document_scores(
        self, engine: GenerateEngine, documents: Sequence[str]
    ) -> list[Likelihood]:
        cut = [windows(self._tokenizer, text) for text in documents]
        scores = likelihoods(engine, [part for parts in cut for part in parts], self._on_step)
        found = iter(scores)
        summed = []
        for parts in cut:
            own = [next(found) for _ in parts]
            total = sum(item.log_prob for item in own)
            summed.append(Likelihood(total, sum(item.num_tokens for item in own)))
        return [item for item in summed if item.num_tokens]

    def _floor(self, engine: GenerateEngine, first: ProbeFigures, file: ProbeFile) -> float | None:
        """A greedy answer is the same again, so that only choices are asked twice."""
        choices = [probe for probe in file.probes if probe.match == "choice"]
        if not choices:
            return None
        again = choice_confidences(engine, self._tokenizer, choices[::-1], self._on_step)[::-1]
        kinds = zip(first.right, file.probes, strict=True)
        before = [int(right) for right, probe in kinds if probe.match == "choice"]
        difference = sum(is_right for is_right, _ in again) - sum(before)
        return abs(difference) / len(file.probes)

    def _loss_floor(
        self, engine: GenerateEngine, first: GeneralFigures, text: GeneralText
    ) -> float | None:
        again = mean_loss(self._document_scores(engine, text.documents[::-1]))
        return None if first.loss is None else _finite(abs(again - first.loss))


Figures = TypeVar("Figures", ProbeFigures, GeneralFigures)


def _same(figures: Figures, earlier: Sequence[Figures]) -> Figures | None:
    """What was measured of the same file with the same contents."""
    key = figures.file, figures.fingerprint
    return next((item for item in earlier if (item.file, item.fingerprint) == key), None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
