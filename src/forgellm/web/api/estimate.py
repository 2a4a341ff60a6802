"""What a run would take, without starting it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from forgellm import hardware
from forgellm.catalog import find_model
from forgellm.envelope import JsonRoute
from forgellm.errors import DiskTooSmall, DoesNotFit
from forgellm.hardware import GB
from forgellm.paths import Workspace
from forgellm.runs.lineage import with_base_run
from forgellm.runs.store import list_runs
from forgellm.schema.figures import DiskItem, EstimateReply, MemoryItem, TimeItem
from forgellm.schema.recipe import Recipe, parse_recipe, recipe_schema
from forgellm.training.estimate import checkpoint_bytes, estimate_memory, resolve_seq_length
from forgellm.training.fitting import with_parallelism
from forgellm.training.plan import num_checkpoints, plan_run, room_for
from forgellm.training.schedule import learning_rate
from forgellm.web.run_figures import summed_up

_RECIPE_BODY = {"requestBody": {"content": {"application/json": {"schema": recipe_schema()}}}}
_DECIDES_SPEED = ("batch_size", "max_seq_length", "fine_tune_type", "grad_checkpoint", "lora_rank")


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api", route_class=JsonRoute)

    @router.post("/estimate", openapi_extra=_RECIPE_BODY)
    def estimate(body: dict[str, Any]) -> EstimateReply:
        """Memory, disk and time of a recipe. What cannot be started at all is an error."""
        return estimate_run(parse_recipe(body), workspace)

    return router


def estimate_run(recipe: Recipe, workspace: Workspace) -> EstimateReply:
    """Raises what `plan_run` raises, but for DoesNotFit and DiskTooSmall, which are the answer."""
    recipe = with_base_run(recipe, workspace, may_wait=True).resolved()
    warnings: list[str] = []
    problem: DoesNotFit | DiskTooSmall | None = None
    try:
        warnings = plan_run(recipe, workspace).warnings
    except (DoesNotFit, DiskTooSmall) as error:
        problem = error
    is_inherited = recipe.base_run is not None
    facts = find_model(recipe.model_name, workspace, allow_absolute=is_inherited).facts
    seq_len = resolve_seq_length(recipe, facts.context_length)
    recipe = recipe.model_copy(update={"max_seq_length": seq_len})
    room = room_for(recipe)
    recipe = with_parallelism(facts, recipe, seq_len, room)
    estimate = estimate_memory(facts, recipe, seq_len, room.device)
    memory = estimate.to_dict(room.num_sharing(recipe))
    checkpoint = checkpoint_bytes(facts, recipe)
    rows = recipe.max_iterations * recipe.grad_accum_steps * recipe.batch_size
    return EstimateReply(
        fits=problem is None,
        problem=problem.to_dict() if problem else None,
        memory=MemoryItem(**memory, available_gb=_gb(room.free_bytes)),
        disk=DiskItem(
            checkpoint_gb=_gb(checkpoint),
            needed_gb=_gb(checkpoint * num_checkpoints(recipe)),
            free_gb=_gb(hardware.disk_free_bytes(workspace.models)),
        ),
        time=_time(recipe, workspace, rows * seq_len),
        max_seq_length=seq_len,
        total_tokens=rows * seq_len,
        learning_rates=_learning_rates(recipe),
        warnings=warnings,
    )


def _learning_rates(recipe: Recipe) -> list[tuple[int, float]]:
    """Evenly spread over the run, and where the warm-up ends."""
    most = recipe.max_iterations
    places = {1 + round(step * (most - 1) / 63) for step in range(64)}
    places |= {recipe.warmup_steps} if recipe.warmup_steps else set()
    return [(iteration, learning_rate(iteration, recipe)) for iteration in sorted(places)]


def _time(recipe: Recipe, workspace: Workspace, total_tokens: int) -> TimeItem:
    """From the newest of the most similar runs of the same model and type that have a speed."""
    wanted = recipe.model_dump()
    candidates = []
    for run in list_runs(workspace):
        former = run.record().recipe.model_dump()
        if all(former[name] == wanted[name] for name in ("model_name", "training_type")):
            likeness = sum(former[name] == wanted[name] for name in _DECIDES_SPEED)
            candidates.append((likeness, run))
    for _, run in sorted(candidates, key=lambda pair: -pair[0]):
        speed = summed_up(run)[1].avg_tokens_per_second
        if speed:
            minutes = round(total_tokens / speed / 60, 2)
            return TimeItem(minutes=minutes, tokens_per_second=round(speed, 1), based_on=run.name)
    return TimeItem(minutes=None, tokens_per_second=None, based_on=None)


def _gb(num_bytes: int) -> float:
    return round(num_bytes / GB, 3)
