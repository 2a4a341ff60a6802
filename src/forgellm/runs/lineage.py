"""Runs that start from a checkpoint of an earlier run: which one, and what is taken over from it."""

from __future__ import annotations

from typing import Any, Literal

from forgellm.errors import CheckpointNotFound, ConfigError, RunNotFound
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import Checkpoint, best_checkpoint, find_checkpoint, weights_sha256
from forgellm.runs.store import Run, find_run, list_runs, unfinished_runs
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import ACTIVE_PHASES, Ancestor

_ADAPTER_FIELDS = ("lora_rank", "lora_alpha", "lora_target", "num_layers")


def inherited(recipe: Recipe, base: Recipe) -> Recipe:
    """`recipe` with what it takes over from that of its base run.

    The model is the same; where the base run's adapter is trained on, so is the adapter's shape.
    Raises ConfigError for fields that ask for something else.
    """
    base = base.resolved()
    taken: dict[str, Any] = {"model_name": base.model_name}
    given = {"model_name"} if recipe.model_name else set()
    if recipe.base_run_mode == "stacked":
        names = ["fine_tune_type", *(_ADAPTER_FIELDS if base.fine_tune_type != "full" else ())]
        taken |= {name: getattr(base, name) for name in names}
        given |= {n for n in names if n in recipe.model_fields_set and getattr(recipe, n)}
    problems = [
        {"field": name, "message": f"is {taken[name]!r} in the base run; leave it out"}
        for name in sorted(given)
        if getattr(recipe, name) != taken[name]
    ]
    if problems:
        raise ConfigError(problems)
    return recipe.model_copy(update=taken)


def with_base_run(recipe: Recipe, workspace: Workspace, *, may_wait: bool) -> Recipe:
    """`recipe` with all that follows from its `base_run`, and that one pinned: `ID@iteration`.

    With `may_wait` a base run that has not ended is named by its id alone: whoever starts the run
    waits for it. Raises RunNotFound, CheckpointNotFound, ConfigError.
    """
    if recipe.base_run is None:
        return recipe
    run, iteration = find_base_run(workspace, recipe.base_run)
    record = run.record()
    recipe = inherited(recipe, record.recipe)
    pinned = record.training_id
    if iteration is not None or not _is_unfinished(run):
        pinned += f"@{_checkpoint(run, iteration).iteration}"
    elif not may_wait:
        raise CheckpointNotFound(
            "The base run has not ended",
            suggestion='Send "queue": true to start after it, or name a checkpoint: RUN@ITERATION.',
            details={"base_run": recipe.base_run},
        )
    return recipe.model_copy(update={"base_run": pinned})


def find_base_run(workspace: Workspace, base_run: str) -> tuple[Run, int | None]:
    """The run and the iteration that `RUN` or `RUN@ITERATION` means. Raises RunNotFound."""
    name, at, iteration = base_run.rpartition("@")
    if at and iteration.isdecimal() and len(iteration) < 10:
        return find_run(workspace, name), int(iteration)
    return find_run(workspace, base_run), None


def start_checkpoint(base_run: str, workspace: Workspace) -> tuple[Run, Checkpoint]:
    """What a base run gives. Raises RunNotFound, RunEdited, CheckpointNotFound."""
    run, iteration = find_base_run(workspace, base_run)
    run.require_as_written()
    return run, _checkpoint(run, iteration)


def lineage_from(
    run: Run, checkpoint: Checkpoint, mode: Literal["merged", "stacked"]
) -> list[Ancestor]:
    """Of what starts from this checkpoint, the oldest first. Raises CheckpointCorrupt."""
    record = run.record()
    parent = Ancestor(
        training_id=record.training_id,
        name=run.name,
        training_type=record.training_type,
        dataset=record.recipe.dataset,
        iteration=checkpoint.iteration,
        weights_sha256=weights_sha256(checkpoint),
        mode=mode,
    )
    return [*record.lineage, parent]


def merged_ancestor(lineage: list[Ancestor]) -> Ancestor | None:
    """The checkpoint that is part of the model which the run's own weights belong to."""
    return next((item for item in reversed(lineage) if item.mode == "merged"), None)


def merged_name(ancestor: Ancestor) -> str:
    """The folder in `models/merged/` of the model that a checkpoint was merged into."""
    return f"{ancestor.training_id}_{ancestor.iteration:07d}_{ancestor.weights_sha256[:12]}"


def waits_for(run: Run) -> str | None:
    """The training_id of the base run that a queued run waits for until it is complete."""
    base_run = run.record().recipe.base_run
    if base_run is None or "@" in base_run:
        return None
    try:
        base = find_run(run.workspace, base_run)
    except RunNotFound:
        return None  # starting it says so
    return None if base.state().phase == "completed" else base.record().training_id


def dependents(run: Run, iteration: int | None = None) -> list[str]:
    """The names of the runs that start from this checkpoint of the run, or from any."""
    training_id = run.record().training_id

    def starts_here(other: Run) -> bool:
        name, _, at = (other.record().recipe.base_run or "").partition("@")
        return name == training_id and (iteration is None or at == str(iteration))

    return sorted(other.name for other in list_runs(run.workspace) if starts_here(other))


def models_in_use(workspace: Workspace) -> set[str]:
    """The models of runs that train or wait."""
    runs = [run for run in unfinished_runs(workspace) if _is_unfinished(run)]
    return {run.record().recipe.model_name for run in runs}


def _is_unfinished(run: Run) -> bool:
    return run.state().phase in {*ACTIVE_PHASES, "queued"}


def _checkpoint(run: Run, iteration: int | None) -> Checkpoint:
    if iteration is not None:
        return find_checkpoint(run.folder, iteration)
    best = best_checkpoint(run.folder)
    if best is None:
        raise CheckpointNotFound(
            "The base run has no checkpoint",
            suggestion="Continue that run first, or start from another one.",
            details={"run": run.name},
        )
    return best
