"""What a run measures of its own model on the way: before its first update, and at checkpoints."""

from __future__ import annotations

from collections.abc import Callable

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import TrainEngine
from forgellm.evaluation.measure import Measurer
from forgellm.evaluation.suite import Suite
from forgellm.schema.evaluation import EvaluationLine
from forgellm.training.recorder import Recorder
from forgellm.training.replay import ReplayRule


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
        replay: ReplayRule | None = None,
    ) -> None:
        def on_step() -> None:
            if should_stop():
                raise _StopAsked

        self._engine, self._recorder, self._replay = engine, recorder, replay
        self._measurer = Measurer(tokenizer, suite, on_step)
        self._start: EvaluationLine | None = None
        self._measured_at: int | None = None
        # Iterations, and the share of replay after each: what the run's rows depend on.
        self.replay_shares: list[tuple[int, float]] = []

    def continue_from(self, iteration: int) -> None:
        """Take up what an earlier part of the run has measured. Lines past its checkpoint are of
        weights that no longer exist."""
        for line in self._recorder.evaluations_until(iteration):
            self._remember(line)
            if self._replay is not None:
                self._replay.recall(line)

    def at(self, iteration: int, *, is_scheduled: bool) -> None:
        """Measure, unless that was done already. Raises DiskFull, OutOfMemory.

        Only what is scheduled may change the share of replay, so that a run that was stopped and
        resumed decides as one that was not.
        """
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
        if self._replay is not None and is_scheduled:
            line = line.model_copy(update={"replay_share": self._replay.observe(line)})
        self._recorder.evaluation(line, samples)
        self._remember(line)

    def _remember(self, line: EvaluationLine) -> None:
        if line.iteration == 0:
            self._start = line
        self._measured_at = line.iteration
        if line.replay_share is not None:
            self.replay_shares.append((line.iteration, line.replay_share))
