"""One run's folder as a stream of events: what a subscriber sees, at a pace it can follow."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from forgellm.errors import TrainingFailed
from forgellm.paths import iso_utc
from forgellm.runs.checkpoints import best_iterations, list_checkpoints
from forgellm.runs.evaluations import EVALUATIONS_NAME, read_evaluations
from forgellm.runs.metrics import METRICS_NAME, downsample, offset_before, read_lines
from forgellm.runs.store import Run
from forgellm.runs.summary import progress_percentage
from forgellm.schema.events import (
    EvaluationUpdate,
    RunEvent,
    TrainingComplete,
    TrainingError,
    TrainingUpdate,
)
from forgellm.schema.run import MetricsLine, RunState
from forgellm.web.run_status import RunFigures, tokenising_of

# Somewhat more than five, so that a run that reports five times a second loses nothing to a stall.
UPDATES_PER_SECOND = 6.0
MAX_BACKFILL = 500

_BURST = 12
_ENDED = frozenset({"completed", "stopped", "failed"})


class RunFeed:
    """Reads what was added to a run's folder since the last look.

    Works for any run of the workspace, whoever started it. Not for two threads at once.
    """

    def __init__(self, run: Run) -> None:
        """Raises RunNotFound."""
        self._run = run
        self._record = run.record()
        self._figures, self._offset = RunFigures.near_end(run.folder)
        self._seq = self._iteration = 0
        self._seen: tuple[object, ...] = ()
        self._shown: tuple[object, ...] = ()
        self._has_ended = False
        self._held: deque[RunEvent] = deque(maxlen=_BURST)
        self._evaluations_size, self._evaluated_until = self._size_of_evaluations(), iso_utc()
        self._allowance, self._filled_at = float(_BURST), time.monotonic()
        self.latest: RunEvent = self._look()[-1]
        """The event that was handed out last: the snapshot for a new subscriber."""

    def poll(self) -> list[RunEvent]:
        """What is new, oldest first. A run that reports faster than the pace skips updates, never
        its last one, a measurement of its model, or its end.

        Raises RunNotFound when the folder is gone.
        """
        seen = self._signature()
        if seen != self._seen:
            self._seen = seen
            self._held.extend(self._look())
        evaluations = self._new_evaluations()
        due = [self._held.popleft() for _ in range(self._num_allowed())]
        if due:
            self.latest = due[-1]
        return [*evaluations, *due]

    def missed(self, since_seq: int) -> list[RunEvent]:
        """The updates after `since_seq` and before `latest`; many are thinned to `MAX_BACKFILL`."""
        until = self.latest.seq - isinstance(self.latest, TrainingUpdate)
        start = offset_before(self._run.folder, since_seq)
        figures, offset = RunFigures.until(self._run.folder, start)
        lines, _ = read_lines(self._run.folder, offset)
        new = [line for line in lines if since_seq < line.seq <= until]
        chosen = {line.seq for line in downsample(new, MAX_BACKFILL)}
        state = self._run.state()
        events: list[RunEvent] = []
        for line in lines:
            figures.add(line)
            if line.seq in chosen:
                events.append(self._update(_at(line, state), line.seq, figures))
        return events

    def _signature(self) -> tuple[object, ...]:
        """Changes whenever there may be something new; costs no reading."""
        folder = self._run.folder
        stats = []
        for name in ("state.json", METRICS_NAME):
            try:
                stat = (folder / name).stat()
                stats.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
            except FileNotFoundError:
                stats.append((0, 0, 0))
        if stats == [(0, 0, 0)] * 2:
            self._run.record()
        return (*stats, self._run.is_alive())

    def _new_evaluations(self) -> list[RunEvent]:
        size = self._size_of_evaluations()
        if size == self._evaluations_size:
            return []
        self._evaluations_size = size
        lines = read_evaluations(self._run.folder)
        new = [line for line in lines if line.timestamp > self._evaluated_until]
        if new:
            self._evaluated_until = max(line.timestamp for line in new)
        common = self._common(self._run.state(), self._seq)
        return [
            EvaluationUpdate.model_validate(
                {**common, "timestamp": line.timestamp, "evaluation": line}
            )
            for line in new
        ]

    def _size_of_evaluations(self) -> int:
        try:
            return (self._run.folder / EVALUATIONS_NAME).stat().st_size
        except OSError:
            return 0

    def _look(self) -> list[RunEvent]:
        # The state first: a trainer writes its last line before its last state.
        state = self._run.state()
        lines, self._offset = read_lines(self._run.folder, self._offset)
        # A vanished trainer counts as ended when the supervisor has written down what it was.
        ended = state.phase in _ENDED or (state.phase == "interrupted" and bool(state.error))
        events: list[RunEvent] = []
        for number, line in enumerate(lines, 1 - len(lines)):
            self._figures.add(line)
            self._seq, self._iteration = line.seq, line.iteration
            if number > -_BURST:  # the others would only be pushed out by these
                moment = _at(line, state)
                if not ended:
                    moment.eta_minutes = state.eta_minutes
                    moment.processes = state.processes
                    moment.phase = state.phase if number == 0 else moment.phase
                events.append(self._update(moment, line.seq, self._figures))
        shown = (state.phase, state.overfitting, tokenising_of(state))
        if ended and not self._has_ended:
            events.append(self._ending(state))
        elif not ended and not lines and shown != self._shown:
            events.append(self._update(state, self._seq, self._figures))
        self._has_ended, self._shown = ended, shown
        return events

    def _num_allowed(self) -> int:
        """How many of the held events may leave now: a bucket of `_BURST`, refilled at the pace."""
        now = time.monotonic()
        refill = (now - self._filled_at) * UPDATES_PER_SECOND
        self._allowance, self._filled_at = min(_BURST, self._allowance + refill), now
        if self._has_ended:
            return len(self._held)
        number = min(len(self._held), int(self._allowance))
        self._allowance -= number
        return number

    def _update(self, state: RunState, seq: int, figures: RunFigures) -> TrainingUpdate:
        most = self._record.recipe.max_iterations
        return TrainingUpdate.model_validate(
            {
                **self._common(state, seq),
                **figures.values,
                "iteration": state.iteration,
                "max_iterations": most,
                "progress_percentage": progress_percentage(state.iteration, most),
                "eta_minutes": state.eta_minutes,
                "overfitting": state.overfitting,
                "overfitting_iteration": state.overfitting_iteration,
                "tokenising": tokenising_of(state),
                "processes": state.processes,
            }
        )

    def _ending(self, state: RunState) -> RunEvent:
        common = {**self._common(state, self._seq), "output_dir": self._run.output_dir}
        if state.phase in ("completed", "stopped"):
            return TrainingComplete.model_validate(
                {
                    **common,
                    "stopped": state.phase == "stopped",
                    "stopped_early": state.stopped_early,
                    "final_iteration": state.iteration,
                    "final_loss": self._figures.values["training_loss"],
                    "training_time_minutes": round(state.training_seconds / 60, 3),
                    "best_checkpoints": best_iterations(list_checkpoints(self._run.folder)),
                }
            )
        fallback = TrainingFailed(
            "The run failed without saying why", suggestion="Look at the run's trainer.log."
        )
        # What the trainer wrote decides; only what it left out is filled in.
        error = {k: v for k, v in (state.error or {}).items() if v and k != "success"}
        return TrainingError.model_validate(
            {
                **fallback.to_dict(),
                **error,
                **common,
                # A trainer that fails has written its state up to a second before.
                "iteration": max(state.iteration, self._iteration),
            }
        )

    def _common(self, state: RunState, seq: int) -> dict[str, Any]:
        return {
            "training_id": self._record.training_id,
            "seq": seq,
            "phase": state.phase,
            "timestamp": state.heartbeat or self._record.created_at,
        }


def _at(line: MetricsLine, state: RunState) -> RunState:
    """The state as it was when `line` was written, as far as that is known now."""
    flagged_at = state.overfitting_iteration
    is_flagged = flagged_at is not None and flagged_at <= line.iteration
    return RunState(
        phase="training",
        iteration=line.iteration,
        overfitting=is_flagged,
        overfitting_iteration=flagged_at if is_flagged else None,
        heartbeat=line.timestamp,
    )
