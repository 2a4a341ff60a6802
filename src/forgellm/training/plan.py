"""What can be known about a run before it starts, without loading anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from forgellm import hardware
from forgellm.catalog import ModelFacts, ModelFolder, find_model
from forgellm.data.chat.files import require_row_files
from forgellm.data.datasets import find_dataset, find_replay
from forgellm.data.documents import dataset_overview
from forgellm.data.mixture import plan_mixture
from forgellm.engines.registry import engine_name
from forgellm.errors import DiskTooSmall
from forgellm.evaluation.suite import suite_of
from forgellm.hardware import GB
from forgellm.paths import Workspace
from forgellm.runs.chains import Chain
from forgellm.runs.lineage import inherited, with_base_run
from forgellm.schema.chain import PREVIOUS, EvalRecipe
from forgellm.schema.recipe import Recipe
from forgellm.training.estimate import (
    Device,
    MemoryEstimate,
    checkpoint_bytes,
    estimate_memory,
    resolve_seq_length,
)
from forgellm.training.fitting import Room, require_fit, with_parallelism
from forgellm.training.sharing import require_sharing
from forgellm.training.trackers import require_trackers

_BYTES_PER_TOKEN = 4.5


@dataclass(frozen=True)
class Plan:
    """A recipe that looks possible. `recipe` is resolved; `estimate` is of one process; `warnings`
    are sentences for the user."""

    recipe: Recipe
    model: ModelFolder
    max_seq_length: int
    estimate: MemoryEstimate
    warnings: list[str]


def plan_run(recipe: Recipe, workspace: Workspace, *, allow_absolute: bool = False) -> Plan:
    """Find what the recipe names and check that it fits this machine.

    With `allow_absolute` the model may be any folder, as the user of the machine typed it.
    Raises ConfigError, PathNotFound, ModelNotFound, UnsupportedModel, RunNotFound, CheckpointNotFound,
    DatasetNotFound, DataError, and what `plan_compute` raises.
    """
    suite_of(recipe, workspace)
    engine_name(recipe.engine)
    require_sharing(recipe, workspace)
    recipe = with_base_run(recipe, workspace, may_wait=recipe.queue)
    # The name that comes from an earlier run may be any folder, as that run's recipe may.
    may_be_anywhere = allow_absolute or recipe.base_run is not None
    model = find_model(recipe.model_name, workspace, allow_absolute=may_be_anywhere)
    plan = plan_compute(recipe, model, workspace)
    dataset = find_dataset(workspace, recipe.dataset)
    if recipe.training_type != "cpt":
        require_row_files(dataset, recipe)
    warnings = [*plan.warnings, *_replay_warnings(plan.recipe, workspace, plan.max_seq_length)]
    return replace(plan, warnings=warnings)


def plan_chain(chain: Chain, *, allow_absolute: bool = False) -> dict[int, Plan]:
    """Plans of a chain's stages that are to be trained, by their numbers.

    A stage that starts from the one before is planned as if that were done. Raises what `plan_run`
    raises.
    """
    plans: dict[int, Plan] = {}
    base: Recipe | None = None
    for number, stage in enumerate(chain.record.stages):
        recipe, run = stage.recipe, chain.run_of(number)
        if isinstance(recipe, EvalRecipe):
            continue
        if run is not None and chain.is_complete(number):
            base = run.record().recipe
            continue
        if recipe.base_run == PREVIOUS and base is not None:
            recipe = inherited(recipe, base).model_copy(update={"base_run": None})
        plans[number] = plan_run(recipe, chain.workspace, allow_absolute=allow_absolute)
        base = plans[number].recipe
    return plans


def plan_compute(
    recipe: Recipe, model: ModelFolder, workspace: Workspace, *, is_first_here: bool = True
) -> Plan:
    """The part of a plan that needs no data. Raises ConfigError, DoesNotFit, DiskTooSmall.

    The first process of a machine looks at its memory, for all that will run there.
    """
    require_trackers(recipe.report_to)
    recipe = recipe.resolved()
    facts, room = model.facts, room_for(recipe)
    seq_len = resolve_seq_length(recipe, facts.context_length)
    _require_disk(workspace.models, facts, recipe)
    if is_first_here:
        recipe = with_parallelism(facts, recipe, seq_len, room)
        estimate = require_fit(facts, recipe, seq_len, room)
    else:
        estimate = estimate_memory(facts, recipe, seq_len, room.device)
    return Plan(recipe, model, seq_len, estimate, _length_warnings(recipe, seq_len))


def num_checkpoints(recipe: Recipe) -> int:
    """Checkpoints on the disk at most: those that are kept, and one more while it is written."""
    saves = -(-recipe.max_iterations // recipe.save_every)
    return min(recipe.max_checkpoints, saves) + 1


def _require_disk(folder: Path, facts: ModelFacts, recipe: Recipe) -> None:
    """Room for all checkpoints, or DiskTooSmall."""
    kept = num_checkpoints(recipe)
    needed = kept * checkpoint_bytes(facts, recipe)
    free = hardware.disk_free_bytes(folder)
    if needed > free:
        raise DiskTooSmall(
            f"{kept} checkpoints take {needed / GB:.2f} GB and {free / GB:.2f} GB are free",
            details={"needed_gb": round(needed / GB, 3), "free_gb": round(free / GB, 3)},
        )


def room_for(recipe: Recipe) -> Room:
    """What this machine has for a recipe. Raises ConfigError for an engine it lacks."""
    engine = engine_name(recipe.engine)
    num_gpus = len(hardware.gpu_names())
    kind = "cuda" if num_gpus and engine == "torch" else "cpu"
    if hardware.is_apple_silicon():
        kind = {"mlx": "metal", "torch": "mps"}[engine]
    dtype = hardware.default_dtype(engine)[0] if recipe.dtype == "auto" else recipe.dtype
    return Room(
        Device(engine, kind, dtype),
        free_bytes=hardware.training_memory_bytes(),
        machine_bytes=hardware.memory_available_bytes(),
        num_gpus=num_gpus,
    )


def _length_warnings(recipe: Recipe, seq_len: int) -> list[str]:
    wanted = recipe.max_seq_length
    if wanted is None or wanted == seq_len:
        return []
    return [f"max_seq_length is {seq_len}, the most this model reads, not {wanted}."]


def _replay_warnings(recipe: Recipe, workspace: Workspace, seq_len: int) -> list[str]:
    """Whether the replay text is too little; the run itself measures it once it has the tokens."""
    replay = dataset_overview(find_replay(workspace, recipe.replay_dataset))
    num_rows = recipe.max_iterations * recipe.grad_accum_steps * recipe.batch_size
    num_tokens = round(replay.total_size_bytes / _BYTES_PER_TOKEN)
    warning = plan_mixture(num_rows, recipe.data_mixture_ratio, num_tokens, seq_len)[1]
    return [f"Estimated from file sizes: {warning}"] if warning else []
