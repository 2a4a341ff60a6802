"""What everything made of a model shares: its own process, and a note of what it was made of.

The child process keeps the engine, its time and its memory out of the process that asks. Folders
appear by `atomic.whole_folder`, whole or not at all.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from forgellm import __version__
from forgellm.atomic import write_json
from forgellm.child import OnProgress, run_child
from forgellm.paths import Workspace, iso_utc

LINEAGE_NAME = "lineage.json"

# -P: a file in the workspace must not pass for a module.
_MAKER: tuple[str, ...] = (sys.executable, "-P", "-m", "forgellm.publishing")


def make(
    task: str,
    request: dict[str, Any],
    workspace: Workspace,
    on_progress: OnProgress = lambda fraction, text: None,
    on_start: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> dict[str, Any]:
    """Do a task of `publishing.__main__` in a child process; its result.

    `on_start` is called with a function that ends the work, for use by another thread.
    Raises the ForgeError that the task raised, or one that says that it ended without a result.
    """
    return run_child(
        [*_MAKER, task, orjson.dumps(request).decode()],
        {"FORGELLM_WORKSPACE": str(workspace.root), "MPLBACKEND": "Agg"},
        task.capitalize(),
        on_progress,
        on_start,
    )


def write_lineage(
    folder: Path, kind: str, made_from: Sequence[str], command: Sequence[str], **facts: Any
) -> None:
    """Note in an artefact's folder what it came from.

    `made_from` are names to load by (`base/tiny`, `published/NAME`) or checkpoints
    (`TRAINING_ID@300`: a training_id stays when a run is renamed), `command` is what makes it
    again, and `facts` is what only this kind of artefact has.
    """
    note = {
        "kind": kind,
        "made_from": list(made_from),
        "command": shlex.join(command),
        "forgellm_version": __version__,
        "created_at": iso_utc(),
        **facts,
    }
    write_json(folder / LINEAGE_NAME, note)
