"""A checkpoint becomes a model of its own in `models/published/`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forgellm.child import OnProgress
from forgellm.errors import CheckpointNotFound, InvalidRequest, PathNotFound
from forgellm.paths import Workspace
from forgellm.publishing.artefact import make
from forgellm.runs.checkpoints import Checkpoint, find_checkpoint
from forgellm.runs.store import Run, find_run
from forgellm.schema.publishing import PublishedDtype

_WEIGHTS_NAME = re.compile(r"(\d{7,})_(adapters\.safetensors|model)")


@dataclass(frozen=True)
class Published:
    """Where a published model is, relative to the workspace, and how it compared.

    Attributes:
        model_name: what to load it by.
        verification: `top1_agreement`, `mean_kl`, `positions` and `dtype` of the comparison.
    """

    published_model_path: str
    model_name: str
    dashboard_path: str
    readme_path: str
    verification: dict[str, Any]


def find_publishable(
    workspace: Workspace, checkpoint_path: str, training_dir: str | None = None
) -> tuple[Run, Checkpoint]:
    """The run and the checkpoint whose weights `checkpoint_path` names.

    Raises CheckpointNotFound, RunNotFound, RunEdited, InvalidRequest.
    """
    absent = CheckpointNotFound(
        "Checkpoint not found",
        suggestion="Give a checkpoint's weights, e.g. models/cpt/NAME/0000300_adapters.safetensors;"
        " GET /api/checkpoints lists them.",
    )
    try:
        weights = workspace.resolve(checkpoint_path)
    except PathNotFound:
        raise absent from None
    name = _WEIGHTS_NAME.fullmatch(weights.name)
    if name is None or not (weights.parent / "run.json").is_file():
        raise absent
    run = find_run(workspace, workspace.relative(weights.parent))
    if training_dir is not None and find_run(workspace, training_dir).folder != run.folder:
        raise InvalidRequest(
            "The checkpoint is not in training_dir",
            suggestion="Leave training_dir out, or give the folder that holds the checkpoint.",
        )
    checkpoint = find_checkpoint(run.folder, int(name[1]))
    if checkpoint.weights != weights:
        raise absent
    run.require_as_written()
    return run, checkpoint


def publish_checkpoint(
    run: Run,
    checkpoint: Checkpoint,
    dtype: PublishedDtype = "stored",
    *,
    allow_changed_base: bool = False,
    on_progress: OnProgress = lambda fraction, text: None,
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> Published:
    """Build, verify and move into place; it is there whole, or not at all.

    Weights are stored as the base stores its own, or exactly, in float32, at twice the size.
    `on_start` is called with a function that ends the work, for use by another thread.
    Raises CheckpointCorrupt, ModelNotFound, ModelChanged, UnsupportedModel, DiskTooSmall, ForgeError.
    """
    request = {
        "run_folder": str(run.folder),
        "iteration": checkpoint.iteration,
        "dtype": None if dtype == "stored" else dtype,
        "allow_changed_base": allow_changed_base,
    }
    return Published(**make("publish", request, run.workspace, on_progress, on_start))
