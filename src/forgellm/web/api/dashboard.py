"""Figures for charts: a run's whole curve, the moment, and several runs side by side."""

from __future__ import annotations

import time
from threading import Lock
from typing import Annotated

from fastapi import APIRouter, Query

from forgellm import hardware
from forgellm.errors import InvalidRequest
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import best_iterations, list_checkpoints
from forgellm.runs.evaluations import read_evaluations, read_samples
from forgellm.runs.metrics import last_line
from forgellm.runs.store import Run, find_run
from forgellm.schema.figures import (
    CompareReply,
    CurrentMetrics,
    DashboardReply,
    Performance,
    RealtimeReply,
)
from forgellm.schema.run import ACTIVE_PHASES
from forgellm.web.comparison import compare
from forgellm.web.run_figures import TrainingDir, chosen_run, summed_up
from forgellm.web.run_status import RunStatus

_MAX_COMPARED = 8
_GPU_SECONDS = 1.0


def make_router(workspace: Workspace, run_status: RunStatus) -> APIRouter:
    router = APIRouter(prefix="/api")
    gpu = _Gpu()

    @router.get("/dashboard/data")
    def data(training_dir: TrainingDir = None) -> DashboardReply:
        """The curve of the current run, else of the latest, with what sums it up."""
        run = chosen_run(workspace, training_dir)
        return _dashboard(run) if run else _NO_DASHBOARD

    @router.get("/dashboard/realtime")
    def realtime() -> RealtimeReply:
        """The newest figures of the current run, else of the latest."""
        run = chosen_run(workspace, None)
        line = last_line(run.folder) if run else None
        status = run_status.status()
        return RealtimeReply(
            current_metrics=CurrentMetrics(
                iteration=line.iteration if line else None,
                training_loss=status["current_loss"],
                validation_loss=status["validation_loss"],
                learning_rate=status["learning_rate"],
                tokens_per_second=status["tokens_per_second"],
                memory_usage_gb=status["memory_usage_gb"],
                gpu_utilization=gpu.utilization(),
                timestamp=line.timestamp if line else None,
            ),
            is_training=status["is_training"],
            training_id=status["training_id"],
        )

    @router.get("/compare")
    def compared(
        runs: Annotated[
            str, Query(min_length=1, max_length=1700, description="Names, separated by commas.")
        ],
    ) -> CompareReply:
        """Curves at common iterations, and the recipe fields in which the runs differ."""
        names = list(dict.fromkeys(name.strip() for name in runs.split(",") if name.strip()))
        if not 1 <= len(names) <= _MAX_COMPARED:
            raise InvalidRequest(f"runs: give 1 to {_MAX_COMPARED} names, separated by commas")
        return compare([find_run(workspace, name) for name in names])

    return router


class _Gpu:
    """Asking takes tens of milliseconds, so that one answer serves all who ask within a second."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._asked_at = float("-inf")
        self._answer: float | None = None

    def utilization(self) -> float | None:
        with self._lock:
            if time.monotonic() - self._asked_at > _GPU_SECONDS:
                self._answer = hardware.gpu_utilization()
                self._asked_at = time.monotonic()
            return self._answer


def _dashboard(run: Run) -> DashboardReply:
    record, state = run.record(), run.state()
    points, performance = summed_up(run)
    return DashboardReply(
        training_data=points,
        evaluations=read_evaluations(run.folder),
        samples=read_samples(run.folder),
        best_checkpoints=best_iterations(list_checkpoints(run.folder)),
        training_config=record.recipe.without_secrets().model_dump(),
        performance_metrics=performance,
        training_dir=run.output_dir,
        training_id=record.training_id,
        phase=state.phase,
        is_training=state.phase in ACTIVE_PHASES,
        overfitting=state.overfitting,
        overfitting_iteration=state.overfitting_iteration,
    )


_NO_DASHBOARD = DashboardReply(
    training_data=[],
    evaluations=[],
    samples=[],
    best_checkpoints=[],
    training_config=None,
    performance_metrics=Performance(),
    training_dir=None,
    training_id=None,
    phase=None,
    is_training=False,
    overfitting=False,
    overfitting_iteration=None,
)
