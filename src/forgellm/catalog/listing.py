"""Every model on this machine, listed from folder entries and small files alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from forgellm.catalog.facts import model_type_of
from forgellm.catalog.find import ModelKind, find_snapshot, is_hub_id
from forgellm.catalog.safety import missing_files
from forgellm.errors import ForgeError
from forgellm.paths import Workspace, hub_cache, iso_utc
from forgellm.schema.recipe import TRAINING_TYPES, TrainingType


@dataclass(frozen=True)
class ListedModel:
    """One line of the list.

    Attributes:
        name: what to give as a model's name; for a run, its folder's name.
        path: relative to `models/`; None for cached models.
        type: None for runs.
    """

    kind: ModelKind
    name: str
    path: str | None
    type: Literal["base", "instruct"] | None
    size_bytes: int
    created_at: str

    @property
    def size_gb(self) -> float:
        return round(self.size_bytes / 1e9, 3)


def list_models(workspace: Workspace) -> list[ListedModel]:
    """Models that can be loaded and runs that have checkpoints, by kind, then newest first."""
    models = [
        *_cached(),
        *_folders(workspace, "base"),
        *(model for kind in TRAINING_TYPES for model in _runs(workspace, kind)),
        *_folders(workspace, "published"),
    ]
    order: tuple[ModelKind, ...] = ("cached", "base", *TRAINING_TYPES, "published")
    models.sort(key=lambda model: model.created_at, reverse=True)
    return sorted(models, key=lambda model: order.index(model.kind))


def _cached() -> Iterator[ListedModel]:
    for repo in _subfolders(hub_cache()):
        name = repo.name.removeprefix("models--").replace("--", "/")
        if not repo.name.startswith("models--") or not is_hub_id(name):
            continue
        snapshot = find_snapshot(name)
        if snapshot is not None and _can_load(snapshot):
            yield ListedModel(
                "cached", name, None, model_type_of(snapshot), _size(snapshot), _modified(snapshot)
            )


def _folders(workspace: Workspace, kind: Literal["base", "published"]) -> Iterator[ListedModel]:
    for folder in _subfolders(workspace.models / kind):
        if _can_load(folder):
            name = f"{kind}/{folder.name}"
            yield ListedModel(
                kind, name, name, model_type_of(folder), _size(folder), _modified(folder)
            )


def _runs(workspace: Workspace, kind: TrainingType) -> Iterator[ListedModel]:
    for folder in _subfolders(workspace.runs(kind)):
        if any(folder.glob("*adapters.safetensors")) or any(folder.glob("*_model/config.json")):
            path = f"{kind}/{folder.name}"
            yield ListedModel(kind, folder.name, path, None, _size(folder), _created(folder))


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # Folders with a dot in front are unfinished imports; links may lead out of the workspace.
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    ]


def _can_load(folder: Path) -> bool:
    try:
        return not missing_files(folder) and any(folder.glob("*.safetensors"))
    except (ForgeError, OSError):
        return False


def _size(folder: Path) -> int:
    """Bytes below `folder`, links to files followed; a trainer may move files meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _created(run: Path) -> str:
    try:
        return str(json.loads((run / "run.json").read_text(encoding="utf-8"))["created_at"])
    except (OSError, ValueError, LookupError, TypeError):
        return _modified(run)


def _modified(folder: Path) -> str:
    return iso_utc(datetime.fromtimestamp(folder.stat().st_mtime, UTC))
