"""From the names a user gives to a model that answers: first the files, then the weights."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from forgellm.catalog import ModelFolder, find_model
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine
from forgellm.engines.merged_model import model_under, require_own_settings
from forgellm.engines.pinned_base import require_same_base
from forgellm.errors import CheckpointNotFound, InvalidRequest, ModelNotFound, PathNotFound
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import (
    Checkpoint,
    best_checkpoint,
    find_checkpoint,
    list_checkpoints,
)
from forgellm.runs.lineage import merged_ancestor
from forgellm.runs.store import Run, open_run
from forgellm.schema.generation import LoadRequest

_ADAPTERS = "adapters.safetensors"
_CHECKPOINT_OF_RUN = re.compile(r"(.+)@(best|latest|[0-9]{1,12})")


@dataclass(frozen=True)
class Source:
    """The files that a load request means; requests for the same files mean the same model.

    Attributes:
        model: the base model's folder, which has the tokenizer.
        adapter: the adapters' file on top of it, or a full checkpoint's folder in its place.
        run: that the adapter is of, if it is of one.
    """

    model: Path
    adapter: Path | None
    engine: str
    dtype: str
    kv_bits: int | None = None
    run: Run | None = field(default=None, compare=False)
    allow_changed_base: bool = field(default=False, compare=False)


def find_source(
    request: LoadRequest, workspace: Workspace, *, allow_absolute: bool = False
) -> Source:
    """The files to open, found but not read.

    With `allow_absolute` (only for paths typed by the user of this machine) also outside the
    workspace, relative to the current directory. Whether the model is what it was when the adapter
    was trained on it is left to `require_own_base`, which reads files. The adapter of a run that began with a merged
    checkpoint stands on that merged model, under the name of the model that it was made of.
    Raises ModelNotFound, CheckpointNotFound, CheckpointCorrupt, RunEdited, InvalidRequest, and what
    `model_under` raises.
    """
    adapter = own_model = run = None
    if request.adapter_path:
        adapter = find_weights(request.adapter_path, workspace, allow_absolute=allow_absolute)
        if (adapter.parent / "run.json").is_file():
            run = open_run(workspace, adapter.parent)
            require_own_settings(run, adapter)
            own_model = _merged_model_under(run, request, workspace)
    model = own_model or _find_model(request.model_name, workspace, allow_absolute).path
    return Source(
        model,
        adapter,
        request.engine,
        request.dtype,
        request.kv_bits,
        run,
        request.allow_changed_base,
    )


def find_weights(adapter_path: str, workspace: Workspace, *, allow_absolute: bool = False) -> Path:
    """An adapters' file or the folder of a full checkpoint; a run stands for its best checkpoint,
    `RUN@latest` and `RUN@300` for another of its own, and a folder that `mlx_lm.lora` wrote for the
    adapter in it.

    Raises CheckpointNotFound.
    """
    path, which = _find_path(adapter_path, workspace, allow_absolute), "best"
    if path is None and (named := _CHECKPOINT_OF_RUN.fullmatch(adapter_path)):
        path, which = _find_path(named[1], workspace, allow_absolute), named[2]
        path = path if path is not None and (path / "run.json").is_file() else None
    if path is not None and (path / "run.json").is_file():
        if found := _checkpoint_of(path, which):
            return found.weights
        raise CheckpointNotFound(
            "This run has no checkpoint yet", details={"adapter_path": adapter_path}
        )
    if path is not None and (path / _ADAPTERS).is_file():
        return path / _ADAPTERS
    if path is not None and path.is_file() and path.name.endswith(_ADAPTERS):
        return path
    if path is not None and path.is_dir() and path.name.endswith("_model"):
        return path
    raise CheckpointNotFound(
        "Adapter not found",
        details={"adapter_path": adapter_path},
        suggestion="Give a run's folder (its best checkpoint is loaded), the folder with @latest or"
        " @300 behind it, or one checkpoint in it, such as"
        f" models/cpt/NAME/0000300_{_ADAPTERS}.",
    )


def _checkpoint_of(run_folder: Path, which: str) -> Checkpoint | None:
    """`which` is best, latest or an iteration. Raises CheckpointNotFound for one that is not there."""
    if which == "best":
        return best_checkpoint(run_folder)
    if which == "latest":
        return next(reversed(list_checkpoints(run_folder)), None)
    return find_checkpoint(run_folder, int(which))


def base_model_of(weights: Path, workspace: Workspace) -> str | None:
    """The name of the model that a run's checkpoint was trained from; None outside a run."""
    if not (weights.parent / "run.json").is_file():
        return None
    return open_run(workspace, weights.parent).record().recipe.model_name


def _merged_model_under(run: Run, request: LoadRequest, workspace: Workspace) -> Path | None:
    """The model that a run which began with a merged checkpoint was trained on; None for others.

    Raises InvalidRequest where another model is asked for: the adapter would mean nothing there.
    """
    record = run.record()
    if merged_ancestor(record.lineage) is None:
        return None
    update = {"engine": request.engine, "allow_changed_base": request.allow_changed_base}
    model = model_under(record.recipe.model_copy(update=update), record.lineage, workspace)
    if request.model_name not in (record.recipe.model_name, model.name):
        raise InvalidRequest(
            f"This run was trained on {record.recipe.model_name} with an earlier run merged into it",
            suggestion=f'Give "{record.recipe.model_name}" as the model.',
            details={"run": record.name},
        )
    return model.path


def require_own_base(source: Source) -> None:
    """Raises ModelChanged where the adapter's run was trained on something else than is there now."""
    if source.run is not None:
        record, workspace = source.run.record(), source.run.workspace
        allow = source.allow_changed_base
        require_same_base(record, source.model, workspace, allow_changed=allow)


def open_source(source: Source) -> tuple[GenerateEngine, Tokenizer]:
    """Read weights and tokenizer.

    Raises UnsupportedModel, ModelChanged, CheckpointNotFound, ConfigError, EngineUnavailable.
    """
    require_own_base(source)
    from forgellm.engines.registry import load_generate_engine

    engine = load_generate_engine(
        source.model,
        source.adapter,
        engine=source.engine,
        dtype=source.dtype,
        kv_bits=source.kv_bits,
    )
    adapter_folder = source.adapter.parent if source.adapter else None
    return engine, Tokenizer.load(source.model, adapter_folder)


def _find_model(name: str, workspace: Workspace, allow_absolute: bool) -> ModelFolder:
    try:
        return find_model(name, workspace, allow_absolute=allow_absolute)
    except ModelNotFound:
        if not allow_absolute or not Path(name).is_dir():
            raise
        return find_model(str(Path(name).resolve()), workspace, allow_absolute=True)


def _find_path(user_path: str, workspace: Workspace, allow_absolute: bool) -> Path | None:
    try:
        return workspace.resolve(user_path)
    except PathNotFound:
        path = Path(os.path.expanduser(user_path))
        return path.resolve() if allow_absolute and path.exists() else None
