"""What a run is doing, as `GET /api/training/status` says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from forgellm.errors import RunNotFound
from forgellm.paths import Workspace
from forgellm.runs.metrics import read_lines
from forgellm.runs.store import Run, active_run, latest_run
from forgellm.runs.summary import progress_percentage
from forgellm.schema.run import MetricsLine

_FROM_METRICS = {
    "current_loss": "training_loss",
    "validation_loss": "validation_loss",
    "learning_rate": "learning_rate",
    "tokens_per_second": "tokens_per_second",
    "memory_usage_gb": "memory_usage_gb",
}


@dataclass
class _Tail:
    """How far a run's metrics were read, and the last figure of each kind."""

    folder: Path | None = None
    offset: int = 0
    figures: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(_FROM_METRICS))

    def add(self, line: MetricsLine) -> None:
        # A report that is not finite shows as null, not as the figure before it.
        is_report = line.learning_rate is not None
        for name, source in _FROM_METRICS.items():
            value = getattr(line, source)
            if value is not None or (is_report and source == "training_loss"):
                self.figures[name] = value


class RunStatus:
    """Answers status questions about a workspace, reading only what was added since the last one."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._tail = _Tail()
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
            **self._figures(run.folder),
            "eta_minutes": state.eta_minutes,
            "output_dir": run.output_dir,
            "training_id": record.training_id,
            "phase": state.phase,
            "overfitting": state.overfitting,
            "error": state.error,
            "warnings": record.warnings,
        }

    def _figures(self, folder: Path) -> dict[str, float | None]:
        with self._lock:
            if self._tail.folder != folder:
                self._tail = _Tail(folder)
            lines, self._tail.offset = read_lines(folder, self._tail.offset)
            for line in lines:
                self._tail.add(line)
            return dict(self._tail.figures)


_NO_RUN: dict[str, Any] = {
    "is_training": False,
    "training_type": None,
    "current_iteration": None,
    "max_iterations": None,
    "progress_percentage": None,
    **dict.fromkeys(_FROM_METRICS),
    "eta_minutes": None,
    "output_dir": None,
    "training_id": None,
    "phase": None,
    "overfitting": None,
    "error": None,
    "warnings": [],
}
