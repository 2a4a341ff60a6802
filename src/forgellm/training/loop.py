"""The one training loop: every method and every engine goes through it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict

from forgellm.data.prepared import PreparedData
from forgellm.engines.base import ProcessMetrics, StepMetrics, TrainEngine
from forgellm.errors import NonFiniteLoss
from forgellm.hardware import GB
from forgellm.paths import iso_utc
from forgellm.runs.checkpoints import Checkpoint
from forgellm.runs.summary import eta_minutes
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import ACTIVE_PHASES, MetricsLine, Phase, ProcessFigures, RunState
from forgellm.training.evaluations import RunEvaluations
from forgellm.training.overfitting import OverfittingMonitor
from forgellm.training.recorder import Recorder
from forgellm.training.schedule import learning_rate

Observer = Callable[[MetricsLine, RunState], None]
_HEARTBEAT_SECONDS = 1.0


class TrainingLoop:
    """Runs a recipe from a checkpoint's iteration (or 0) to its end, or until asked to stop."""

    def __init__(
        self,
        recorder: Recorder,
        recipe: Recipe,
        engine: TrainEngine,
        data: PreparedData,
        should_stop: Callable[[], bool],
        observer: Observer,
        evaluations: RunEvaluations | None = None,
    ) -> None:
        self._recorder, self._recipe, self._engine, self._data = recorder, recipe, engine, data
        self._planned_data = data
        self._should_stop, self._observer = should_stop, observer
        self._evaluations = evaluations
        self._state = RunState()
        self._monitor = OverfittingMonitor(
            recipe.overfitting_threshold, recipe.early_stopping_patience
        )
        self._trained_tokens = 0
        self._seconds_before = 0.0
        self._started = self._last_read = self._state_written = time.monotonic()
        self._unread_iterations = 0
        self._iteration_seconds: deque[float] = deque(maxlen=20)
        self._last_saved: int | None = None
        self._last_validation: tuple[int, float | None] = (0, None)

    def run(self, resume_from: Checkpoint | None) -> RunState:
        """Returns the final state, phase `completed` or `stopped`.

        Raises NonFiniteLoss, OutOfMemory, DiskFull, TrainingFailed; what was saved stays usable.
        """
        with self._recorder:
            first = self._continue_from(resume_from) if resume_from else self._begin()
            for iteration in range(first + 1, self._recipe.max_iterations + 1):
                if self._should_stop():
                    return self._finish_early()
                self._update(iteration)
                if self._is_due(iteration):
                    self._report(iteration)
                if self._monitor.should_stop:
                    self._state.stopped_early = True
                    break
            self._save_once()
        return self._finish("completed")

    # --- start ------------------------------------------------------------------------------

    def _begin(self) -> int:
        """Measure the untouched model, so that every curve starts at what training began with."""
        loss = self._validate(0)
        if loss is not None:
            self._monitor.observe(self._write_line(0, None, None, loss))
        self._measure(0)
        self._enter("training")
        self._last_read = time.monotonic()
        return 0

    def _continue_from(self, checkpoint: Checkpoint) -> int:
        self._engine.restore(checkpoint.weights, checkpoint.folder)
        position = checkpoint.position()
        self._trained_tokens = int(position["trained_tokens"])
        self._seconds_before = float(position["training_seconds"])
        self._monitor.replay(self._recorder.lines_until(checkpoint.iteration))
        self._state.iteration = self._last_saved = checkpoint.iteration
        if self._evaluations is not None:
            self._evaluations.continue_from(checkpoint.iteration)
            self._measure(checkpoint.iteration)
        self._enter("training")
        self._last_read = time.monotonic()
        return checkpoint.iteration

    # --- one iteration ----------------------------------------------------------------------

    def _update(self, iteration: int) -> None:
        rate = learning_rate(iteration, self._recipe)
        accumulate = self._recipe.grad_accum_steps
        for part in range(accumulate):
            batch = self._data.batch((iteration - 1) * accumulate + part)
            self._engine.step(batch, rate, update=part == accumulate - 1)
        self._state.iteration = iteration
        self._unread_iterations += 1

    def _is_due(self, iteration: int) -> bool:
        return iteration % self._recipe.report_every == 0 or self._evaluates(iteration)

    def _evaluates(self, iteration: int) -> bool:
        every = self._recipe.eval_every or self._recipe.save_every
        return iteration % every == 0 or self._saves(iteration)

    def _saves(self, iteration: int) -> bool:
        recipe = self._recipe
        return iteration % recipe.save_every == 0 or iteration == recipe.max_iterations

    def _report(self, iteration: int) -> None:
        metrics = self._engine.read_metrics()
        seconds = max(1e-9, time.monotonic() - self._last_read)
        self._iteration_seconds.append(seconds / self._unread_iterations)
        self._trained_tokens += metrics.num_tokens
        self._require_finite(iteration, metrics)
        self._state.processes = _figures_of(metrics.processes, seconds)
        loss = self._validate(iteration) if self._evaluates(iteration) else None
        line = self._write_line(iteration, metrics, seconds, loss)
        self._monitor.observe(line)
        if self._saves(iteration):
            self._save(iteration, loss)
        self._enter("training", quietly=True)
        self._observer(line, self._state)
        self._last_read, self._unread_iterations = time.monotonic(), 0

    def _require_finite(self, iteration: int, metrics: StepMetrics) -> None:
        if math.isfinite(metrics.training_loss) and math.isfinite(metrics.grad_norm):
            return
        self._write_line(iteration, metrics, None, None)
        raise NonFiniteLoss(
            f"The loss became {metrics.training_loss} at iteration {iteration}",
            details={"iteration": iteration, "last_checkpoint": self._last_saved},
        )

    def _validate(self, iteration: int) -> float | None:
        """None where nothing is held out, or where a stop request cut it short."""
        self._enter("evaluating")
        loss = self._engine.validation_loss(self._data.validation_batches(), self._should_stop)
        if self._should_stop() or not self._data.summary["validation_tokens"]:
            return None
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"The validation loss became {loss} at iteration {iteration}")
        self._last_validation = (iteration, loss)
        return loss

    def _write_line(
        self,
        iteration: int,
        metrics: StepMetrics | None,
        seconds: float | None,
        validation_loss: float | None,
    ) -> MetricsLine:
        figures: dict[str, float | int | None] = {"validation_loss": validation_loss}
        if metrics is not None:
            figures |= {
                "training_loss": metrics.training_loss,
                "grad_norm": metrics.grad_norm,
                "learning_rate": learning_rate(iteration, self._recipe),
                "memory_usage_gb": metrics.peak_memory_bytes / GB,
                "tokens_per_second": metrics.num_tokens / seconds if seconds else None,
            }
            figures |= asdict(metrics.preference) if metrics.preference else {}
        return self._recorder.line(
            iteration=iteration, trained_tokens=self._trained_tokens, **figures
        )

    # --- checkpoints and state --------------------------------------------------------------

    def _save_once(self) -> None:
        iteration = self._state.iteration
        if iteration > 0 and self._last_saved != iteration:
            measured_at, loss = self._last_validation
            self._save(iteration, loss if measured_at == iteration else None)

    def _save(self, iteration: int, validation_loss: float | None) -> None:
        self._enter("saving")
        position = {"trained_tokens": self._trained_tokens, "training_seconds": self._seconds()}
        self._recorder.checkpoint(
            iteration, validation_loss, self._engine, position, self._recipe.max_checkpoints
        )
        self._engine.group.meet()  # one may take longer over the disk than the others
        self._last_saved = iteration
        self._measure(iteration)

    def _measure(self, iteration: int) -> None:
        """After the checkpoint, so that what goes wrong here costs no training."""
        if self._evaluations is not None:
            self._enter("evaluating")
            self._evaluations.at(iteration, is_scheduled=iteration == 0 or self._saves(iteration))
            self._data = self._planned_data.with_replay(self._evaluations.replay_shares)

    def _finish_early(self) -> RunState:
        self._save_once()
        return self._finish("stopped")

    def _finish(self, phase: Phase) -> RunState:
        self._enter(phase)
        return self._state

    def _seconds(self) -> float:
        return round(self._seconds_before + time.monotonic() - self._started, 3)

    def _eta(self) -> float | None:
        left = self._recipe.max_iterations - self._state.iteration
        return eta_minutes(left, list(self._iteration_seconds))

    def _enter(self, phase: Phase, *, quietly: bool = False) -> None:
        """Show where the run is; `quietly` at most once a second."""
        now = time.monotonic()
        state = self._state
        changed = state.phase != phase
        state.phase = phase
        state.training_seconds = self._seconds()
        state.eta_minutes = self._eta() if phase in ACTIVE_PHASES else None
        state.overfitting = self._monitor.flagged
        state.overfitting_iteration = self._monitor.iteration
        if changed or not quietly or now - self._state_written >= _HEARTBEAT_SECONDS:
            state.heartbeat = iso_utc()
            self._recorder.state(state)
            self._state_written = now


def _figures_of(processes: Sequence[ProcessMetrics], seconds: float) -> list[ProcessFigures]:
    """Of several; of one alone the run's own figures say it."""
    if len(processes) < 2:
        return []
    return [
        ProcessFigures(
            rank=rank,
            host=process.host,
            memory_usage_gb=process.peak_memory_bytes / GB,
            tokens_per_second=process.num_tokens / seconds,
        )
        for rank, process in enumerate(processes)
    ]
