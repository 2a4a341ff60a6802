"""What a task of `forgellm data` is told to do, in a form that passes to another process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from forgellm.errors import PathNotFound
from forgellm.paths import Workspace

Task = Literal["inspect", "stats", "dedup", "split", "prepare", "restore"]


@dataclass(frozen=True)
class Order:
    """Attributes:
    settings: the fields of the task's request.
    tokenizer: folder of the model that counts tokens.
    any_path: whether files to compare with may lie outside the workspace.
    """

    task: Task
    workspace: str
    dataset: str
    settings: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    any_path: bool = False


def against_files(order: Order, names: list[str]) -> dict[str, Path]:
    """The files that a user names. Raises PathNotFound."""
    workspace = Workspace(Path(order.workspace))
    return {name: _file(workspace, name, order.any_path) for name in names}


def _file(workspace: Workspace, name: str, any_path: bool) -> Path:
    if any_path and (given := Path(name).expanduser()).is_file():
        return given
    found = workspace.resolve(name)
    if not found.is_file():
        raise PathNotFound("Path not found", suggestion="Give a file inside the workspace.")
    return found
