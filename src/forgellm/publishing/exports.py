"""Files for other programs, in `models/exported/`: made in a child process, listed, removed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forgellm.atomic import read_json, remove_folder
from forgellm.catalog import ModelFolder, find_model
from forgellm.child import OnProgress
from forgellm.errors import Conflict, NotFound
from forgellm.paths import RUN_NAME, Workspace
from forgellm.publishing.artefact import LINEAGE_NAME, make
from forgellm.publishing.sources import require_adapter
from forgellm.runs.lineage import start_checkpoint
from forgellm.schema.exports import ADAPTER_FORMATS, ExportItem, ExportRequest


def export_model(
    request: ExportRequest,
    workspace: Workspace,
    on_progress: OnProgress = lambda fraction, text: None,
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> dict[str, Any]:
    """Make the folder, check it against the model and move it into place; what it is and how it
    compared. It is there whole, or not at all.

    `on_start` is called with a function that ends the work, for use by another thread.
    Raises ModelNotFound, UnsupportedModel, InvalidRequest, Conflict, DiskTooSmall, ForgeError.
    """
    check_export(request, workspace)
    return make("export", request.model_dump(), workspace, on_progress, on_start)


def check_export(request: ExportRequest, workspace: Workspace) -> Path:
    """The folder to be made, once what needs no reading of weights is found right.

    Raises ModelNotFound, RunNotFound, CheckpointNotFound, UnsupportedModel, InvalidRequest,
    Conflict.
    """
    if request.format in ADAPTER_FORMATS:
        run, checkpoint = start_checkpoint(request.model_name, workspace)
        require_adapter(run, checkpoint)
        return free_folder(workspace, f"{run.name}_{checkpoint.iteration:07d}-{request.format}")
    from forgellm.catalog.gguf_export_config import export_config  # bring numpy
    from forgellm.publishing.gguf_types import gguf_type

    model = find_model(request.model_name, workspace)
    gguf_type(request.type)
    export_config(model.config)
    return free_folder(workspace, f"{plain_name(model)}-{request.format}-{request.type.lower()}")


def plain_name(model: ModelFolder) -> str:
    """The model's name without what is before it, as a file may be called."""
    return (
        re.sub(r"[^A-Za-z0-9._+-]+", "_", model.name.rsplit("/", 1)[-1]).lstrip("._+-") or "model"
    )


def free_folder(workspace: Workspace, name: str) -> Path:
    """Raises Conflict where it is there already."""
    folder = workspace.exported_models / name
    if folder.exists():
        raise Conflict(
            f"models/exported/{name} is there already",
            suggestion=f"Remove it first: forgellm models remove exported/{name}",
        )
    return folder


def list_exports(workspace: Workspace) -> list[ExportItem]:
    """Newest first."""
    found = [_item(path, workspace) for path in workspace.exported_models.glob("[!.]*")]
    listed = [item for item in found if item is not None]
    return sorted(listed, key=lambda item: (item.created_at, item.name), reverse=True)


def remove_export(name: str, workspace: Workspace) -> int:
    """Delete the folder for good; the bytes freed. Raises NotFound."""
    folder = workspace.exported_models / name
    if not RUN_NAME.fullmatch(name) or folder.is_symlink() or not folder.is_dir():
        raise NotFound("There is no such export", suggestion="GET /api/models/exports lists them.")
    return remove_folder(folder, "the export")


def _item(folder: Path, workspace: Workspace) -> ExportItem | None:
    """None for what is no export."""
    note = read_json(folder / LINEAGE_NAME) or {}
    sizes = _sizes(folder)
    try:
        return ExportItem(
            name=folder.name,
            path=workspace.relative(folder),
            kind=note["kind"],
            made_from=note["made_from"],
            size_gb=round(sum(sizes.values()) / 1e9, 3),
            files=sorted(sizes),
            created_at=note["created_at"],
        )
    except (LookupError, ValueError):  # a note may say anything
        return None


def _sizes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
