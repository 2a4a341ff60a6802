"""Where the loop's figures, states and checkpoints go: into the run, or nowhere.

Of several processes that train together the first writes; the others compute the same, keep silent,
and give their part of a checkpoint.
"""

from __future__ import annotations

from typing import Any, Protocol

from forgellm.engines.base import TrainEngine
from forgellm.paths import iso_utc
from forgellm.runs import checkpoints
from forgellm.runs.evaluations import append_evaluation, read_evaluations
from forgellm.runs.manifest import stem_of
from forgellm.runs.metrics import MetricsWriter, effective, read_lines
from forgellm.runs.store import Run
from forgellm.schema.evaluation import EvaluationLine, SampleLine
from forgellm.schema.run import MetricsLine, RunState


class Recorder(Protocol):
    """Open from the first line to the last: a context manager."""

    def lines_until(self, iteration: int) -> list[MetricsLine]:
        """The lines of an earlier part of the run, up to where it is resumed."""

    def line(self, **figures: Any) -> MetricsLine:
        """Keep a line of metrics. Raises DiskFull."""

    def state(self, state: RunState) -> None:
        """Show where the run is. Raises DiskFull."""

    def checkpoint(
        self,
        iteration: int,
        validation_loss: float | None,
        engine: TrainEngine,
        position: dict[str, Any],
        keep: int,
    ) -> None:
        """Keep a checkpoint, and no more than `keep`. Raises DiskFull, TrainingFailed."""

    def evaluations_until(self, iteration: int) -> list[EvaluationLine]:
        """What an earlier part of the run measured, up to where it is resumed."""

    def evaluation(self, line: EvaluationLine, samples: list[SampleLine]) -> None:
        """Keep a measurement of the model, and what it said. Raises DiskFull."""

    def __enter__(self) -> Recorder: ...

    def __exit__(self, *_: object) -> None: ...


class RunRecorder:
    """Writes into a run, whose lock this process holds."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> RunRecorder:
        self._metrics = MetricsWriter(self._run.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()

    def lines_until(self, iteration: int) -> list[MetricsLine]:
        lines, _ = read_lines(self._run.folder)
        return [line for line in effective(lines) if line.iteration <= iteration]

    def line(self, **figures: Any) -> MetricsLine:
        return self._metrics.append(**figures)

    def state(self, state: RunState) -> None:
        self._run.write_state(state)

    def checkpoint(
        self,
        iteration: int,
        validation_loss: float | None,
        engine: TrainEngine,
        position: dict[str, Any],
        keep: int,
    ) -> None:
        checkpoints.write_checkpoint(
            self._run.folder,
            iteration,
            validation_loss,
            engine.save_weights,
            engine.save_optimizer,
            position,
        )
        checkpoints.prune(self._run.folder, keep)

    def evaluations_until(self, iteration: int) -> list[EvaluationLine]:
        return [x for x in read_evaluations(self._run.folder) if x.iteration <= iteration]

    def evaluation(self, line: EvaluationLine, samples: list[SampleLine]) -> None:
        append_evaluation(self._run.folder, line, samples)


class SilentRecorder:
    """Writes nothing. `earlier` is the recorder of the run whose next part this is."""

    def __init__(self, earlier: RunRecorder | None = None) -> None:
        self._earlier = earlier

    def __enter__(self) -> SilentRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def lines_until(self, iteration: int) -> list[MetricsLine]:
        return self._earlier.lines_until(iteration) if self._earlier else []

    def line(self, **figures: Any) -> MetricsLine:
        return MetricsLine(seq=0, timestamp=iso_utc(), **figures)

    def state(self, state: RunState) -> None:
        pass

    def checkpoint(
        self,
        iteration: int,
        validation_loss: float | None,
        engine: TrainEngine,
        position: dict[str, Any],
        keep: int,
    ) -> None:
        engine.save_weights(None, stem_of(iteration))
        engine.save_optimizer(None)

    def evaluations_until(self, iteration: int) -> list[EvaluationLine]:
        return self._earlier.evaluations_until(iteration) if self._earlier else []

    def evaluation(self, *_: Any) -> None:
        pass
