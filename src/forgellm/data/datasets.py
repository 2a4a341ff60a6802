"""Where datasets are: the folders below `dataset/` in the workspace."""

from __future__ import annotations

from pathlib import Path

from forgellm.errors import DatasetNotFound, PathNotFound
from forgellm.paths import Workspace

_SHIPPED_REPLAY = Path(__file__).parents[1] / "assets" / "general" / "replay"


def list_datasets(workspace: Workspace) -> list[str]:
    """Names of the folders in `dataset/`, sorted."""
    if not workspace.datasets.is_dir():
        return []
    found = (path for path in workspace.datasets.iterdir() if path.is_dir())
    return sorted(path.name for path in found if not path.name.startswith("."))


def find_dataset(workspace: Workspace, name: str) -> Path:
    """The folder of dataset `name`, given as "my_domain" or "dataset/my_domain".

    Raises DatasetNotFound.
    """
    inside = name.removeprefix("dataset/").strip("/")
    try:
        folder = workspace.resolve(inside, below=workspace.datasets)
        below = folder != workspace.datasets and folder.is_relative_to(workspace.datasets.resolve())
        if below and folder.is_dir():
            return folder
    except PathNotFound:
        pass
    existing = ", ".join(list_datasets(workspace)[:20])
    raise DatasetNotFound(
        "Dataset not found",
        suggestion=f"Datasets here: {existing}"
        if existing
        else "Make a folder below dataset/ in the workspace and put your documents into it.",
        details={"dataset": name, "searched_paths": [f"dataset/{inside}"]},
    )


def find_replay(workspace: Workspace, name: str | None) -> Path:
    """The folder of general text: dataset `name`, or the text that ships with the package.

    Raises DatasetNotFound.
    """
    return _SHIPPED_REPLAY if name is None else find_dataset(workspace, name)
