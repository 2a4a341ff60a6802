"""What a run measures of its own model on the way: before its first update, and at checkpoints."""

from __future__ import annotations

from collections.abc import Callable

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import TrainEngine
from forgellm.evaluation.measure import Measurer
from forgellm.evaluation.suite import Suite
from forgellm.schema.evaluation import EvaluationLine
from forgellm.training.recorder import Recorder


class _StopAsked(Exception):
    """The run is to end; what has been measured of this iteration is dropped."""


class RunEvaluations:
    """Measures a training engine's weights and keeps the figures in the run."""

    def __init__(
        self,
        suite: Suite,
        engine: TrainEngine,
        tokenizer: Tokenizer,
        recorder: Recorder,
        should_stop: Callable[[], bool],
    ) -> None:
        def on_step() -> None:
            if should_stop():
                raise _StopAsked

        self._engine, self._recorder = engine, recorder
        self._measurer = Measurer(tokenizer, suite, on_step)
        self._start: EvaluationLine | None = None
        self._measured_at: int | None = None

    def continue_from(self, iteration: int) -> None:
        """Take up what an earlier part of the run has measured. Lines past its checkpoint are of
        weights that no longer exist."""
        for line in self._recorder.evaluations_until(iteration):
            self._remember(line)

    def at(self, iteration: int) -> None:
        """Measure, unless that was done already. Raises DiskFull, OutOfMemory."""
        if self._measured_at == iteration:
            return
        try:
            with self._engine.evaluating() as model:
                if iteration == 0:
                    line = self._measurer.first(model)
                else:
                    line = self._measurer.line(model, iteration, self._start)
                samples = self._measurer.samples(model, iteration)
        except _StopAsked:
            return
        self._recorder.evaluation(line, samples)
        self._remember(line)

    def _remember(self, line: EvaluationLine) -> None:
        if line.iteration == 0:
            self._start = line
        self._measured_at = line.iteration
