"""Every model on this machine, listed from folder entries and small files alone.

The small files are read again only where a folder's entries have changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

from forgellm.catalog.facts import model_type_of
from forgellm.catalog.find import ModelKind, find_snapshot, is_hub_id
from forgellm.catalog.safety import missing_files
from forgellm.errors import ForgeError
from forgellm.file_memory import Signature, is_settled, signature, signature_of
from forgellm.paths import Workspace, hub_cache, iso_utc
from forgellm.schema.recipe import TRAINING_TYPES
from forgellm.settings import read_settings


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
    memory = _memory_of(workspace)
    models = [model for place in _places(workspace) if (model := memory.get(*place)) is not None]
    memory.forget_unseen()
    order: tuple[ModelKind, ...] = ("cached", "base", *TRAINING_TYPES, "published")
    models.sort(key=lambda model: model.created_at, reverse=True)
    return sorted(models, key=lambda model: order.index(model.kind))


def _places(workspace: Workspace) -> Iterator[tuple[ModelKind, str, str]]:
    """Kind, name and folder of whatever may be a model."""
    for repo in _subfolders(hub_cache()):
        name = os.path.basename(repo).removeprefix("models--").replace("--", "/")
        if not os.path.basename(repo).startswith("models--") or not is_hub_id(name):
            continue
        if (snapshot := find_snapshot(name)) is not None:
            yield "cached", name, str(snapshot)
    kinds: tuple[ModelKind, ...] = ("base", *TRAINING_TYPES, "published")
    may_link = read_settings(workspace.root).linked_models
    for kind in kinds:
        for folder in _subfolders(workspace.models / kind, with_links=may_link and kind == "base"):
            yield kind, os.path.basename(folder), folder


def _describe(kind: ModelKind, name: str, path: str, size_bytes: int) -> ListedModel | None:
    """None if there is nothing to load. A function of the folder's names and files alone."""
    folder, shown = Path(path), f"{kind}/{name}"
    if kind in TRAINING_TYPES:
        if any(folder.glob("*adapters.safetensors")) or any(folder.glob("*_model/config.json")):
            return ListedModel(kind, name, shown, None, size_bytes, _created(folder))
    elif _can_load(folder):
        what, date = model_type_of(folder), _modified(folder)
        if kind == "cached":
            return ListedModel(kind, name, None, what, size_bytes, date)
        return ListedModel(kind, shown, shown, what, size_bytes, date)
    return None


_Signatures = dict[str, Signature | None]
"""By path; None for links that lead nowhere."""


class _Memory:
    """What was found of each folder, until something in it changes. For several threads."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Signatures, ListedModel | None]] = {}
        self._seen: set[str] = set()

    def get(self, kind: ModelKind, name: str, folder: str) -> ListedModel | None:
        self._seen.add(folder)
        known = self._known.get(folder)
        if known is not None and all(signature(path) == seen for path, seen in known[0].items()):
            return known[1]
        try:
            contents = _Contents(folder)
        except OSError:  # gone in this moment
            return None
        # What is said of a run follows from its folders' names, but for the size of its logs.
        watched = contents.folders | ({} if kind in TRAINING_TYPES else contents.files)
        settled = is_settled(contents.newest)
        model = _describe(kind, name, folder, contents.size_bytes)
        if settled:
            self._known[folder] = watched, model
        return model

    def forget_unseen(self) -> None:
        for folder in self._known.keys() - self._seen:
            self._known.pop(folder, None)
        self._seen = set()


@lru_cache(maxsize=8)
def _memory_of(workspace: Workspace) -> _Memory:
    return _Memory()


class _Contents:
    """All that lies below a folder, by names and dates, links to files followed.

    Attributes:
        size_bytes: of all files; a trainer may move some meanwhile.
        newest: the signature with the latest date.
        folders: the folder and those below; `files` is all else, with links to other folders.
    """

    def __init__(self, folder: str) -> None:
        self.size_bytes = 0
        self.newest: Signature = (0, 0, 0)
        self.files: _Signatures = {}
        self.folders: _Signatures = {}
        self._add(self.folders, folder, signature_of(os.stat(folder)))
        self._walk(folder)

    def _walk(self, folder: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                seen = signature(entry.path)
                is_folder = entry.is_dir()
                if is_folder and not entry.is_symlink():
                    self._add(self.folders, entry.path, seen)
                    with suppress(OSError):
                        self._walk(entry.path)
                    continue
                self._add(self.files, entry.path, seen)
                self.size_bytes += seen[1] if seen and not is_folder else 0

    def _add(self, found: _Signatures, path: str, seen: Signature | None) -> None:
        found[path] = seen
        if seen and seen[2] > self.newest[2]:
            self.newest = seen


def _subfolders(folder: Path, *, with_links: bool = False) -> list[str]:
    # Folders with a dot in front are unfinished imports; links may lead out of the workspace.
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.path
                for entry in entries
                if entry.is_dir(follow_symlinks=with_links) and not entry.name.startswith(".")
            )
    except OSError:
        return []


def _can_load(folder: Path) -> bool:
    try:
        return not missing_files(folder) and any(folder.glob("*.safetensors"))
    except (ForgeError, OSError):
        return False


def _created(run: Path) -> str:
    try:
        return str(json.loads((run / "run.json").read_text(encoding="utf-8"))["created_at"])
    except (OSError, ValueError, LookupError, TypeError):
        return _modified(run)


def _modified(folder: Path) -> str:
    return iso_utc(datetime.fromtimestamp(folder.stat().st_mtime, UTC))
