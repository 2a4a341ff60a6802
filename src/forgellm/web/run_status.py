"""What a run is doing, as `GET /api/training/status` says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from forgellm.errors import RunNotFound
from forgellm.paths import Workspace
from forgellm.runs.metrics import FIGURES, METRICS_NAME, read_lines
from forgellm.runs.store import Run, active_run, latest_run
from forgellm.runs.summary import progress_percentage
from forgellm.schema.run import MetricsLine, RunState

# A shorter log is read as a whole.
_LONG_BYTES = 1 << 20
_TAIL_BYTES = 1 << 16


@dataclass
class RunFigures:
    """The last figure of each kind in the lines of a run's metrics."""

    values: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(FIGURES))

    def add(self, line: MetricsLine) -> None:
        # A report that is not finite shows as null, not as the figure before it.
        is_report = line.learning_rate is not None
        for name in FIGURES:
            value = getattr(line, name)
            if value is not None or (is_report and name == "training_loss"):
                self.values[name] = value

    @classmethod
    def until(cls, folder: Path, offset: int) -> tuple[RunFigures, int]:
        """Those of all lines before a byte `offset` of the log, and where to read on."""
        if offset < _LONG_BYTES:
            return cls(), 0
        from forgellm.runs.curve import figures_before

        found, end = figures_before(folder, offset)
        return cls(dict.fromkeys(FIGURES) | found), end

    @classmethod
    def near_end(cls, folder: Path) -> tuple[RunFigures, int]:
        """As `until` somewhat before the end of the log, so that its last lines are left to read."""
        try:
            size = (folder / METRICS_NAME).stat().st_size
        except OSError:
            size = 0
        return cls.until(folder, size - _TAIL_BYTES)


class RunStatus:
    """Answers status questions about a workspace, reading only what was added since the last one."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._folder: Path | None = None
        self._offset = 0
        self._figures = RunFigures()
        self._lock = Lock()

    def status(self) -> dict[str, Any]:
        """The run that trains, else the last one, else nulls."""
        active = active_run(self._workspace)
        run = active or latest_run(self._workspace)
        try:
            return self._describe(run, is_training=active is not None) if run else dict(_NO_RUN)
        except RunNotFound:  # its folder went away between the two looks
            return dict(_NO_RUN)

    def _describe(self, run: Run, *, is_training: bool) -> dict[str, Any]:
        record, state = run.record(), run.state()
        most = record.recipe.max_iterations
        return {
            "is_training": is_training,
            "training_type": record.training_type,
            "current_iteration": state.iteration,
            "max_iterations": most,
            "progress_percentage": progress_percentage(state.iteration, most),
            **self._read_figures(run.folder),
            "eta_minutes": state.eta_minutes,
            "output_dir": run.output_dir,
            "training_id": record.training_id,
            "phase": state.phase,
            "tokenising": tokenising_of(state),
            "processes": [process.model_dump() for process in state.processes],
            "overfitting": state.overfitting,
            "error": state.error,
            "warnings": record.warnings,
        }

    def _read_figures(self, folder: Path) -> dict[str, float | None]:
        with self._lock:
            if self._folder != folder:
                self._figures, self._offset = RunFigures.near_end(folder)
                self._folder = folder
            lines, self._offset = read_lines(folder, self._offset)
            for line in lines:
                self._figures.add(line)
            return _as_status(self._figures.values)


def tokenising_of(state: RunState) -> dict[str, int] | None:
    """What is shown of it: nothing once the text is tokenised."""
    figure = state.tokenising if state.phase == "preparing" else None
    return figure.model_dump() if figure and figure.done_bytes < figure.total_bytes else None


def _as_status(figures: dict[str, float | None]) -> dict[str, float | None]:
    """The status calls the training loss `current_loss`."""
    return {"current_loss" if name == "training_loss" else name: figures[name] for name in FIGURES}


_NO_RUN: dict[str, Any] = {
    "is_training": False,
    "training_type": None,
    "current_iteration": None,
    "max_iterations": None,
    "progress_percentage": None,
    **_as_status(dict.fromkeys(FIGURES)),
    "eta_minutes": None,
    "output_dir": None,
    "training_id": None,
    "phase": None,
    "tokenising": None,
    "processes": [],
    "overfitting": None,
    "error": None,
    "warnings": [],
}
