"""The models and checkpoints that something is made of: by what names, and which are adapters."""

from __future__ import annotations

from pathlib import Path

from forgellm.errors import InvalidRequest
from forgellm.runs.checkpoints import Checkpoint
from forgellm.runs.store import Run

Source = tuple[Run, Checkpoint]


def shown_name(model: str) -> str:
    """A model given by its place on this machine is named by its last part alone."""
    return Path(model).name if model.startswith(("/", "~")) else model


def name_of(run: Run, checkpoint: Checkpoint) -> str:
    """What the checkpoint is loaded by."""
    return f"{run.record().training_type}/{run.name}@{checkpoint.iteration}"


def id_of(run: Run, checkpoint: Checkpoint) -> str:
    """The same by what stays when the run is renamed."""
    return f"{run.record().training_id}@{checkpoint.iteration}"


def require_adapter(run: Run, checkpoint: Checkpoint) -> None:
    """Raises InvalidRequest for the checkpoint of a full run."""
    if checkpoint.weights.is_dir():
        raise InvalidRequest(
            f"{name_of(run, checkpoint)} is a full model, not an adapter",
            suggestion="Publish it: forgellm publish "
            f"--run {run.name} --iteration {checkpoint.iteration}",
        )
