"""A checkpoint becomes a model of its own in `models/published/`, built in a child process.

The child keeps the engine, its time and its memory out of the process that asks.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

import orjson

from forgellm.errors import CheckpointNotFound, ForgeError, InvalidRequest, PathNotFound
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import Checkpoint, find_checkpoint
from forgellm.runs.store import Run, find_run

# -P: a file in the workspace must not pass for a module. The run and the iteration are appended.
PUBLISHER: tuple[str, ...] = (sys.executable, "-P", "-m", "forgellm.publishing")

OnProgress = Callable[[float, str], None]
_WEIGHTS_NAME = re.compile(r"(\d{7,})_(adapters\.safetensors|model)")
_GRACE_SECONDS = 10.0
_LOGGED_BYTES = 4000
_log = logging.getLogger(__name__)


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

    Raises CheckpointNotFound, RunNotFound, InvalidRequest.
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
    return run, checkpoint


def publish_checkpoint(
    run: Run,
    checkpoint: Checkpoint,
    on_progress: OnProgress = lambda fraction, text: None,
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> Published:
    """Build, verify and move into place; it is there whole, or not at all.

    `on_start` is called with a function that ends the work, for use by another thread.
    Raises CheckpointCorrupt, ModelNotFound, UnsupportedModel, DiskTooSmall, ForgeError.
    """
    arguments = [*PUBLISHER, str(run.folder), str(checkpoint.iteration)]
    environment = os.environ | {"FORGELLM_WORKSPACE": str(run.workspace.root), "MPLBACKEND": "Agg"}
    with (
        TemporaryFile() as complaints,
        _child(arguments, environment, complaints) as process,
    ):
        on_start(process.terminate)
        published = _follow(process, on_progress)
        if published is None:
            complaints.seek(0)
            _log.error(
                "publishing failed: %s",
                complaints.read()[-_LOGGED_BYTES:].decode("utf-8", "replace"),
            )
            raise ForgeError(
                f"Publishing ended without a result (exit status {process.wait()})",
                suggestion="If memory ran out, close other programs and try again.",
                details={"run": run.name, "iteration": checkpoint.iteration},
            )
    return published


@contextmanager
def _child(
    arguments: list[str], environment: dict[str, str], complaints: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that has ended when this ends, whatever happens."""
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=complaints,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _follow(process: subprocess.Popen[bytes], on_progress: OnProgress) -> Published | None:
    """Read what the child says, an object a line, until its result or its error."""
    assert process.stdout is not None
    for line in process.stdout:
        item = orjson.loads(line)
        if "published" in item:
            return Published(**item["published"])
        if "error" in item:
            raise error_of(item["error"])
        on_progress(item["progress"], item["message"])
    return None


def error_of(envelope: dict[str, Any]) -> ForgeError:
    """The error whose envelope another process wrote."""
    kinds: list[type[ForgeError]] = [ForgeError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    chosen = next((kind for kind in kinds if kind.code == envelope["error_code"]), ForgeError)
    error = chosen.__new__(chosen)  # some take other arguments than these
    ForgeError.__init__(
        error, envelope["error"], suggestion=envelope["suggestion"], details=envelope["details"]
    )
    return error
