"""Start, watch, stop and resume training."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from forgellm.catalog import find_model
from forgellm.data.datasets import find_dataset, find_replay
from forgellm.data.mixture import plan_mixture
from forgellm.envelope import JsonRoute
from forgellm.errors import ConfigError, InvalidRequest
from forgellm.paths import Workspace
from forgellm.runs.store import Run, find_run
from forgellm.schema.recipe import Recipe, parse_recipe
from forgellm.schema.run import ResumeRequest
from forgellm.supervisor import resume_training, start_training, stop_training
from forgellm.web.run_status import RunStatus

DEFAULT_SEQ_LENGTH = 3072
STOP_WAIT_SECONDS = 10.0
_BYTES_PER_TOKEN = 4.5
_RECIPE_BODY = {
    "requestBody": {"content": {"application/json": {"schema": Recipe.model_json_schema()}}}
}


def make_router(workspace: Workspace, run_status: RunStatus) -> APIRouter:
    router = APIRouter(prefix="/api/training", route_class=JsonRoute)

    @router.post("/start", openapi_extra=_RECIPE_BODY)
    def start(body: dict[str, Any]) -> dict[str, Any]:
        """Start a training run."""
        recipe = parse_recipe(body)
        max_seq_length, warnings = check_start(workspace, recipe)
        run = start_training(workspace, recipe, max_seq_length=max_seq_length)
        return {**_started(run, "Training started successfully"), "warnings": warnings}

    @router.get("/status")
    def status() -> dict[str, Any]:
        """The run that trains now, or the final figures of the last one."""
        return {"success": True, **run_status.status()}

    @router.post("/stop")
    def stop() -> dict[str, Any]:
        """Stop training after the current step, with a checkpoint to resume from."""
        run = stop_training(workspace)
        has_ended = _wait_for_end(run)
        message = "Training stopped successfully" if has_ended else "Training is stopping"
        return _started(run, message)

    @router.post("/resume")
    def resume(body: ResumeRequest) -> dict[str, Any]:
        """Continue a run from its newest intact checkpoint."""
        wanted = body.training_id or body.output_dir
        if not wanted:
            raise InvalidRequest("Give the run's training_id or output_dir")
        run = find_run(workspace, wanted)
        resume_training(workspace, run)
        return _started(run, "Training resumed successfully")

    return router


def check_start(workspace: Workspace, recipe: Recipe) -> tuple[int, list[str]]:
    """The sequence length for `recipe`, and warnings.

    Raises ConfigError, ModelNotFound, UnsupportedModel or DatasetNotFound, so that a wrong name is
    an answer to the request and not a run that fails later.
    """
    if recipe.training_type == "ift":
        raise ConfigError.one(
            "training_type", "instruction fine-tuning arrives in a later version; use cpt"
        )
    model = find_model(recipe.model_name, workspace)
    find_dataset(workspace, recipe.dataset)
    wanted = recipe.max_seq_length or DEFAULT_SEQ_LENGTH
    length = min(wanted, model.facts.context_length or wanted)
    warnings = _replay_warnings(workspace, recipe, length)
    if recipe.max_seq_length is not None and length < wanted:
        warnings.append(f"max_seq_length is {length}, the most this model reads, not {wanted}.")
    return length, warnings


def _replay_warnings(workspace: Workspace, recipe: Recipe, max_seq_length: int) -> list[str]:
    """Whether the replay text is too little; the run itself measures it once it has the tokens."""
    from forgellm.data.documents import dataset_overview

    replay = dataset_overview(find_replay(workspace, recipe.replay_dataset))
    num_rows = recipe.max_iterations * recipe.grad_accum_steps * recipe.batch_size
    num_tokens = round(replay.total_size_bytes / _BYTES_PER_TOKEN)
    warning = plan_mixture(num_rows, recipe.data_mixture_ratio, num_tokens, max_seq_length)[1]
    return [f"Estimated from file sizes: {warning}"] if warning else []


def _wait_for_end(run: Run) -> bool:
    deadline = time.monotonic() + STOP_WAIT_SECONDS
    while run.is_alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _started(run: Run, message: str) -> dict[str, Any]:
    return {
        "success": True,
        "message": message,
        "training_id": run.record().training_id,
        "output_dir": run.output_dir,
    }
