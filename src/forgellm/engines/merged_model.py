"""A checkpoint and the model it was trained on as one model folder: for publishing, and for runs
that start from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError

from forgellm import hardware
from forgellm.atomic import file_lock, read_json, storage_error, whole_folder
from forgellm.catalog import ModelFolder, find_model
from forgellm.data.tokenizer import CHAT_TEMPLATE_NAME
from forgellm.engines.base import FuseEngine
from forgellm.engines.chat_files import carry_template, name_turn_ends
from forgellm.engines.pinned_base import require_same_base
from forgellm.engines.registry import load_fuse_engine
from forgellm.errors import CheckpointCorrupt, DiskTooSmall
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import Checkpoint, find_checkpoint, verify, weights_sha256
from forgellm.runs.lineage import merged_ancestor, merged_name
from forgellm.runs.store import Run, find_run
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import Ancestor, RunRecord

_COPIED = ("*.json", "*.jinja", "*.tiktoken", "*.model", "vocab.txt", "merges.txt", "LICEN[CS]E*")
_NOT_COPIED = {"config.json", "adapter_config.json", "model.safetensors.index.json"}


def model_of(
    record: RunRecord,
    workspace: Workspace,
    engine: str = "auto",
    *,
    allow_changed: bool = False,
) -> ModelFolder:
    """The model that a run's weights belong to, found to be what it was; see `model_under`.

    Raises ModelChanged unless `allow_changed`, and what `model_under` raises.
    """
    recipe = record.recipe.model_copy(
        update={"engine": engine, "allow_changed_base": allow_changed}
    )
    model = model_under(recipe, record.lineage, workspace)
    require_same_base(record, model.path, workspace, allow_changed=allow_changed)
    return model


def model_under(recipe: Recipe, lineage: list[Ancestor], workspace: Workspace) -> ModelFolder:
    """The model that the weights of a run of this lineage belong to.

    That is the one its recipe names or, after a merged base run, the folder in `models/merged/`,
    which is made (again) where it is missing. Raises ModelNotFound, UnsupportedModel, RunNotFound,
    CheckpointNotFound, CheckpointCorrupt, ModelChanged, DiskTooSmall, DiskFull.
    """
    ancestor = merged_ancestor(lineage)
    if ancestor is None:
        return find_model(recipe.model_name, workspace, allow_absolute=True)
    name = merged_name(ancestor)
    if not (workspace.merged_models / name).is_dir():
        _make(ancestor, workspace, name, recipe)
    return find_model(f"{workspace.merged_models.name}/{name}", workspace)


def _make(ancestor: Ancestor, workspace: Workspace, name: str, recipe: Recipe) -> None:
    run = find_run(workspace, ancestor.training_id)
    checkpoint = find_checkpoint(run.folder, ancestor.iteration)
    verify(checkpoint)
    if weights_sha256(checkpoint) != ancestor.weights_sha256:
        raise CheckpointCorrupt(
            f"Checkpoint {checkpoint.iteration} of {run.name} is not the one that was started from",
            details={"run": run.name, "iteration": checkpoint.iteration},
        )
    engine = recipe.engine
    base = model_of(run.record(), workspace, engine, allow_changed=recipe.allow_changed_base)
    merged = workspace.merged_models
    with file_lock(merged / ".merge.lock"):
        if (merged / name).is_dir():
            return
        require_disk(merged, base, "merged")
        with whole_folder(merged / name, "the merged model") as model:
            write_merged(load_fuse_engine(engine), base.path, run, checkpoint, model)


def write_merged(
    engine: FuseEngine,
    base: Path,
    run: Run,
    checkpoint: Checkpoint,
    out: Path,
    on_progress: Callable[[float], None] = lambda done: None,
    dtype: str | None = None,
) -> None:
    """Weights, tokenizer and chat template of the model that the checkpoint makes of its base.
    Weights are stored as the base stores its own, or in `dtype`.

    Raises CheckpointCorrupt, UnsupportedModel, DiskFull.
    """
    write_model(
        base,
        [(run, checkpoint)],
        out,
        lambda: engine.fuse(base, checkpoint.weights, out, on_progress, dtype),
    )


def write_model(
    base: Path,
    made_of: Sequence[tuple[Run, Checkpoint]],
    out: Path,
    write_weights: Callable[[], None],
) -> None:
    """What `write_weights` writes, with the base's tokenizer and the first chat template that a run
    brings, whose ends of a turn its files name. Raises CheckpointCorrupt, UnsupportedModel, DiskFull."""
    for run, checkpoint in made_of:
        require_own_settings(run, checkpoint.weights)
    try:
        write_weights()
    except SafetensorError as error:  # how a full disk shows there
        raise storage_error(out.name, error) from error
    for _, checkpoint in made_of:
        verify(checkpoint)  # it may have been replaced while it was read
    copy_beside_weights(base, out)
    for run, _ in made_of:
        if (run.folder / CHAT_TEMPLATE_NAME).is_file():  # what its conversations were read with
            carry_template(run.folder / CHAT_TEMPLATE_NAME, out)
            break
    name_turn_ends(out)


def copy_beside_weights(base: Path, out: Path) -> None:
    """The tokenizer, chat template, generation settings and licence of a model, exactly."""
    for pattern in _COPIED:
        for file in base.glob(pattern):
            if file.is_file() and file.name not in _NOT_COPIED:
                shutil.copyfile(file, out / file.name)


def require_disk(folder: Path, base: ModelFolder, kind: str, dtype: str | None = None) -> None:
    """Room for a model of the base's size, or for its plain weights; or DiskTooSmall."""
    needed = base.facts.size_bytes
    if dtype == "float32":
        needed = 4 * base.facts.num_parameters
    elif base.facts.quantization:
        needed = 2 * base.facts.num_parameters
    require_room(folder, needed, f"The {kind} model takes")


def require_room(folder: Path, needed: float, what_takes: str) -> None:
    """So many bytes are free where `folder` is, or DiskTooSmall."""
    free = hardware.disk_free_bytes(folder)
    if needed > free:
        raise DiskTooSmall(
            f"{what_takes} {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            suggestion="Free disk space.",
        )


def require_own_settings(run: Run, weights: Path) -> None:
    """What is beside the weights, and not in their manifest, is what they were trained with.

    Raises RunEdited, and CheckpointCorrupt where the adapter's scale does not follow from the recipe.
    """
    run.require_as_written()
    if not weights.is_dir():
        _require_own_scale(run)
    run.require_own_files()


def _require_own_scale(run: Run) -> None:
    recipe = run.record().recipe
    config = read_json(run.folder / "adapter_config.json") or {}
    found = config.get("lora_parameters")
    found = found if isinstance(found, dict) else {}
    scale = (recipe.lora_alpha or 2.0 * recipe.lora_rank) / recipe.lora_rank
    expected = (recipe.fine_tune_type, recipe.lora_rank, scale)
    if (config.get("fine_tune_type"), found.get("rank"), found.get("scale")) != expected:
        raise CheckpointCorrupt(
            "adapter_config.json does not agree with the run's recipe",
            suggestion="Restore it from a copy of the run.",
            details={"run": run.name, "file": "adapter_config.json"},
        )
