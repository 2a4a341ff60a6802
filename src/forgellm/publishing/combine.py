"""Adapters of one base model combined to a model of its own in `models/published/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from forgellm.catalog import find_model
from forgellm.child import OnProgress
from forgellm.errors import Conflict, InvalidRequest
from forgellm.paths import Workspace
from forgellm.publishing.artefact import make
from forgellm.publishing.sources import Source, id_of, require_adapter
from forgellm.runs.lineage import merged_ancestor, merged_name, start_checkpoint
from forgellm.runs.store import Run
from forgellm.schema.combining import CombineRequest


def combine(
    request: CombineRequest,
    workspace: Workspace,
    on_progress: OnProgress = lambda fraction, text: None,
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> dict[str, Any]:
    """Combine, compare and move into place; `build_combined.Combined` says what is returned.

    `on_start` is called with a function that ends the work, for use by another thread.
    Raises what `pinned` raises, CheckpointCorrupt, UnsupportedModel, DiskTooSmall, ForgeError.
    """
    body = pinned(request, workspace).model_dump(mode="json")
    return make("combine", body, workspace, on_progress, on_start)


def pinned(request: CombineRequest, workspace: Workspace) -> CombineRequest:
    """The request with each checkpoint as `TRAINING_ID@ITERATION`, found to be possible.

    Raises RunNotFound, CheckpointNotFound, ModelNotFound, InvalidRequest, Conflict.
    """
    parts = find_parts(request.checkpoints, workspace)
    require_free_name(request.name, workspace)
    return request.model_copy(update={"checkpoints": [id_of(*part) for part in parts]})


def find_parts(checkpoints: Sequence[str], workspace: Workspace) -> list[Source]:
    """Raises RunNotFound, CheckpointNotFound, ModelNotFound, InvalidRequest."""
    parts = [start_checkpoint(name, workspace) for name in checkpoints]
    for run, checkpoint in parts:
        require_adapter(run, checkpoint)
    bases = {_base_of(run): run.name for run, _ in parts}
    if len(bases) > 1:
        raise InvalidRequest(
            "These checkpoints belong to different models",
            suggestion="Combine adapters that were trained on the same model.",
            details={"runs": sorted(bases.values())},
        )
    return parts


def require_free_name(name: str, workspace: Workspace) -> None:
    """Raises Conflict."""
    if (workspace.published_models / name).exists():
        raise Conflict(
            f"There is a model published/{name} already",
            suggestion=f"Choose another name, or remove it: forgellm models remove published/{name}",
        )


def _base_of(run: Run) -> str:
    """Names the model that the run's adapter belongs to, without making it."""
    record = run.record()
    ancestor = merged_ancestor(record.lineage)
    if ancestor is not None:
        return f"merged/{merged_name(ancestor)}"
    return find_model(record.recipe.model_name, run.workspace, allow_absolute=True).name
