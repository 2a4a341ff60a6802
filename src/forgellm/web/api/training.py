"""Start, watch, stop and resume training."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from forgellm.envelope import JsonRoute
from forgellm.errors import InvalidRequest
from forgellm.paths import Workspace
from forgellm.runs.store import Run, find_run
from forgellm.schema.recipe import parse_recipe, recipe_schema
from forgellm.schema.run import ResumeRequest
from forgellm.schema.training import StatusReply, TrainingReply, TrainingStartedReply
from forgellm.supervisor import resume_training, start_training, stop_training
from forgellm.training.plan import plan_run
from forgellm.web.run_status import RunStatus

STOP_WAIT_SECONDS = 10.0
_RECIPE_BODY = {"requestBody": {"content": {"application/json": {"schema": recipe_schema()}}}}


def make_router(workspace: Workspace, run_status: RunStatus) -> APIRouter:
    router = APIRouter(prefix="/api/training", route_class=JsonRoute)

    @router.post("/start", openapi_extra=_RECIPE_BODY)
    def start(body: dict[str, Any]) -> TrainingStartedReply:
        """Start a training run."""
        recipe = parse_recipe(body)
        plan = plan_run(recipe, workspace)
        run = start_training(workspace, recipe, max_seq_length=plan.max_seq_length)
        waits = run.written_state().phase == "queued"
        message = "Training queued" if waits else "Training started successfully"
        return TrainingStartedReply(**_named(run, message), warnings=plan.warnings)

    @router.get("/status")
    def status() -> StatusReply:
        """The run that trains now, or the final figures of the last one."""
        return StatusReply(**run_status.status())

    @router.post("/stop")
    def stop() -> TrainingReply:
        """Stop training after the current step, with a checkpoint to resume from."""
        run = stop_training(workspace)
        has_ended = _wait_for_end(run)
        message = "Training stopped successfully" if has_ended else "Training is stopping"
        return TrainingReply(**_named(run, message))

    @router.post("/resume")
    def resume(body: ResumeRequest) -> TrainingReply:
        """Continue a run from its newest intact checkpoint."""
        wanted = body.training_id or body.output_dir
        if not wanted:
            raise InvalidRequest("Give the run's training_id or output_dir")
        run = find_run(workspace, wanted)
        resume_training(workspace, run, allow_changed_base=body.allow_changed_base)
        return TrainingReply(**_named(run, "Training resumed successfully"))

    return router


def _wait_for_end(run: Run) -> bool:
    deadline = time.monotonic() + STOP_WAIT_SECONDS
    while run.is_alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _named(run: Run, message: str) -> dict[str, Any]:
    return {
        "message": message,
        "training_id": run.record().training_id,
        "output_dir": run.output_dir,
    }
