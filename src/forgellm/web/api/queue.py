"""Runs that wait for the one that trains."""

from __future__ import annotations

from fastapi import APIRouter

from forgellm.errors import Conflict, RunNotFound
from forgellm.paths import Workspace
from forgellm.runs.lineage import waits_for
from forgellm.runs.store import Run, active_run, find_run, unfinished_runs
from forgellm.schema.manage import QueueItem, QueueReply, RunChangedReply
from forgellm.supervisor import stop_training
from forgellm.web.api.runs import RunName
from forgellm.web.run_figures import run_changed


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api/queue")

    @router.get("")
    def queue() -> QueueReply:
        """Queued runs in the order in which they will train."""
        waiting = [item for run in unfinished_runs(workspace) if (item := _waiting(run))]
        waiting.sort(key=lambda item: (item.created_at, item.name))  # as the supervisor takes them
        for position, item in enumerate(waiting, 1):
            item.position = position
        running = active_run(workspace)
        return QueueReply(
            queue=waiting,
            running=running.record().training_id if running else None,
        )

    @router.delete("/{name}")
    def leave(name: RunName) -> RunChangedReply:
        """Take a run off the queue. It stays in the list of runs, as stopped."""
        run = find_run(workspace, name)
        if run.written_state().phase != "queued":
            raise Conflict(
                "The run does not wait in the queue",
                suggestion="A run that trains is ended with POST /api/training/stop.",
                details={"run": run.name},
            )
        stop_training(workspace, run)
        return run_changed(run, "Run taken off the queue")

    return router


def _waiting(run: Run) -> QueueItem | None:
    if run.written_state().phase != "queued":
        return None
    try:
        record = run.record()
    except RunNotFound:  # it has just gone
        return None
    return QueueItem(
        position=0,
        name=run.name,
        training_id=record.training_id,
        output_dir=run.output_dir,
        model_name=record.recipe.model_name,
        dataset=record.recipe.dataset,
        max_iterations=record.recipe.max_iterations,
        waits_for=waits_for(run),
        created_at=record.created_at,
    )
