"""From a model's name to its folder, checked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from forgellm.catalog.facts import ModelFacts, read_facts
from forgellm.catalog.safety import check_model_files, missing_files, weight_files
from forgellm.errors import ModelNotFound, PathNotFound
from forgellm.paths import Workspace, hub_cache
from forgellm.schema.recipe import TRAINING_TYPES, TrainingType
from forgellm.settings import read_settings

ModelKind = Literal["base", "published", "cached"] | TrainingType

_KINDS: dict[str, ModelKind] = {**{kind: kind for kind in TRAINING_TYPES}, "published": "published"}
_LIST = "See the models on this machine with: forgellm models list"
_ID_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"{_ID_PART}(/{_ID_PART})?")
_LINK_NAME = re.compile(_ID_PART)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ModelFolder:
    """A model in Hugging Face layout whose files passed the safety checks."""

    name: str
    path: Path
    kind: ModelKind
    config: dict[str, Any] = field(repr=False)

    @property
    def weight_files(self) -> list[Path]:
        return weight_files(self.path)

    @cached_property
    def facts(self) -> ModelFacts:
        return read_facts(self.path, self.config)


def find_model(name: str, workspace: Workspace, *, allow_absolute: bool = False) -> ModelFolder:
    """The model that `name` means: in the workspace first, then in the hub cache.

    With `allow_absolute` (only for names typed by the user of this machine) also any folder.
    Raises ModelNotFound with the places searched, or UnsupportedModel.
    """
    shown, folder, kind = _locate(name, workspace, allow_absolute)
    return ModelFolder(shown, folder, kind, check_model_files(folder))


def find_folder(name: str, workspace: Workspace, *, allow_absolute: bool = False) -> Path:
    """As `find_model`, of a model that need not be safe to open, nor whole. Raises ModelNotFound."""
    return _locate(name, workspace, allow_absolute)[1]


def _locate(name: str, workspace: Workspace, allow_absolute: bool) -> tuple[str, Path, ModelKind]:
    searched: list[str] = []
    if allow_absolute and name[:1] in ("/", "~"):
        outside = Path(os.path.expanduser(name))
        if _is_complete(outside, name, searched):
            return name, outside, "base"
        raise ModelNotFound(name, searched, suggestion="Give the folder that holds config.json.")
    for below in (workspace.base_models, workspace.models, workspace.root):
        place = below.relative_to(workspace.root).as_posix() + "/"
        folder = _folder_in_workspace(name, workspace, below)
        if folder is not None and _is_complete(folder, place, searched):
            return _in_workspace(folder, workspace)
        link = _link_out(name, workspace, below) if folder is None else None
        if link is not None and read_settings(workspace.root).linked_models:
            target = link.resolve()
            if _is_complete(target, f"{place} (a link)", searched):
                return f"base/{link.name}", target, "base"
            continue
        if link is not None and allow_absolute:
            raise ModelNotFound(
                name,
                [f"{place} (a link that leads out of the workspace, or to no model)"],
                suggestion="Such links are followed where the workspace's settings.toml says "
                "linked_models = true. Or name the folder itself: --model /FOLDER.",
            )
        if folder is None:
            searched.append(place)
    snapshot = find_snapshot(name) if is_hub_id(name) else None
    if snapshot is not None and _is_complete(snapshot, hub_cache_shown(), searched):
        return name, snapshot, "cached"
    if snapshot is None:
        started = is_hub_id(name) and cache_folder(name).is_dir()
        searched.append(hub_cache_shown() + " (incomplete: not fully downloaded)" * started)
    raise ModelNotFound(name, searched, suggestion="" if is_hub_id(name) else _LIST)


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a hub id, and so is safe to use in a path."""
    return bool(_HUB_ID.fullmatch(name)) and "--" not in name and ".." not in name


def cache_folder(repo_id: str) -> Path:
    """Where the hub cache keeps this repository."""
    return hub_cache() / ("models--" + repo_id.replace("/", "--"))


def hub_cache_shown() -> str:
    """The hub cache's place in words that name no path of this machine."""
    for variable, suffix in (("HF_HUB_CACHE", "/"), ("HF_HOME", "/hub/")):
        if os.environ.get(variable):
            return f"${variable}{suffix}"
    return "~/.cache/huggingface/hub/"


def find_snapshot(repo_id: str) -> Path | None:
    """The snapshot that `refs/main` names, else (no such ref) the newest one."""
    repo = cache_folder(repo_id)
    try:
        commit = (repo / "refs" / "main").read_text(encoding="ascii").strip()
        if _COMMIT.fullmatch(commit) and (repo / "snapshots" / commit).is_dir():
            return repo / "snapshots" / commit
        return None
    except (OSError, ValueError):
        snapshots = [p for p in repo.glob("snapshots/*") if _COMMIT.fullmatch(p.name)]
        return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _folder_in_workspace(name: str, workspace: Workspace, below: Path) -> Path | None:
    try:
        folder = workspace.resolve(name, below=below)
    except PathNotFound:
        return None
    return folder if (folder / "config.json").is_file() else None


def _link_out(name: str, workspace: Workspace, below: Path) -> Path | None:
    """A link directly in `models/base/` by one of the names of a model there. Whoever has made it
    could have named its target on the command line; no route of the servers can make one."""
    link = below / name
    is_plain = _LINK_NAME.fullmatch(link.name) and ".." not in link.parts
    return link if is_plain and link.parent == workspace.base_models and link.is_symlink() else None


def _in_workspace(folder: Path, workspace: Workspace) -> tuple[str, Path, ModelKind]:
    parts = Path(workspace.relative(folder)).parts
    if parts[:1] == (workspace.models.name,):
        parts = parts[1:]
    kind = _KINDS.get(parts[0], "base") if parts else "base"
    return "/".join(parts) or ".", folder, kind


def _is_complete(folder: Path, place: str, searched: list[str]) -> bool:
    if not folder.is_dir():
        searched.append(place)
        return False
    if missing := missing_files(folder):
        searched.append(f"{place} (incomplete: {', '.join(missing[:3])} missing)")
        return False
    return True
