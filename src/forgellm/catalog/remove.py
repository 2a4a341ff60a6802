"""Deletes models that were pulled, imported or published. Runs have the trash instead."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from forgellm.atomic import remove_folder
from forgellm.catalog.find import cache_folder, find_folder, is_hub_id
from forgellm.errors import Conflict, InvalidRequest, ModelNotFound
from forgellm.paths import Workspace


def remove_model(name: str, workspace: Workspace, in_use: Iterable[str]) -> int:
    """Delete a model of the hub's cache, of `models/base/` or of `models/published/`, for good.

    `in_use` are the names of models that may not go now. Returns the bytes freed.
    Raises ModelNotFound, InvalidRequest for what is no such model, Conflict for one in use.
    """
    folder = _folder_of(name, workspace)
    if any(_is_of(used, folder, workspace) for used in in_use):
        raise Conflict(
            "A run that trains or waits needs this model",
            suggestion="Stop that run or let it end, then delete the model.",
            details={"model_name": name},
        )
    return remove_folder(folder, "the model")


def _folder_of(name: str, workspace: Workspace) -> Path:
    if is_hub_id(name) and cache_folder(name).is_dir():
        return cache_folder(name)
    folder = find_folder(name, workspace)  # one that cannot be opened can still be deleted
    removable = (workspace.base_models.resolve(), workspace.published_models.resolve())
    if folder.parent not in removable:
        raise InvalidRequest(
            f"{name} is no model of its own, so it is not deleted here",
            suggestion="A run goes to the trash: forgellm runs delete NAME, or DELETE "
            "/api/runs/{name}.",
        )
    return folder


def _is_of(name: str, folder: Path, workspace: Workspace) -> bool:
    try:
        return find_folder(name, workspace, allow_absolute=True).is_relative_to(folder)
    except ModelNotFound:
        return False
