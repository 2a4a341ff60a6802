"""Folders of the workspace, for choosing models and datasets."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query

from forgellm.errors import PathNotFound
from forgellm.paths import Workspace
from forgellm.runs.folder_size import folder_size
from forgellm.schema.files import BrowseReply, FileEntry, FolderEntry
from forgellm.web.run_figures import MB

_MAX_ENTRIES = 2000
_COUNT_SECONDS = 1.0


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api/filesystem")

    @router.get("/browse")
    def browse(
        path: Annotated[
            str, Query(max_length=1000, description="Relative to the workspace.")
        ] = ".",
    ) -> BrowseReply:
        """What is in a folder of the workspace. Hidden entries and links are left out."""
        folder = workspace.resolve(path or ".")
        shown = workspace.relative(folder)
        is_hidden = any(part.startswith(".") for part in Path(shown).parts)
        if is_hidden or not folder.is_dir():
            raise PathNotFound("Path not found", suggestion="Give a path inside the workspace.")
        return _listing(folder, shown)

    return router


def _listing(folder: Path, shown: str) -> BrowseReply:
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry for entry in scan if _is_shown(entry)), key=lambda e: e.name)
    except OSError:
        raise PathNotFound("The folder cannot be opened") from None
    deadline = time.monotonic() + _COUNT_SECONDS
    kept = entries[:_MAX_ENTRIES]
    return BrowseReply(
        path=shown,
        directories=[_directory(entry, deadline) for entry in kept if entry.is_dir()],
        files=[_file(entry) for entry in kept if not entry.is_dir()],
        truncated=len(entries) > len(kept),
    )


def _is_shown(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith(".") or entry.is_symlink():
        return False
    return entry.is_dir() or entry.is_file()


def _directory(entry: os.DirEntry[str], deadline: float) -> FolderEntry:
    size = folder_size(Path(entry.path), deadline)
    return FolderEntry(
        name=_printable(entry.name),
        file_count=size.file_count,
        size_mb=round(size.num_bytes / MB, 3),
        complete=size.is_complete,
    )


def _file(entry: os.DirEntry[str]) -> FileEntry:
    try:
        num_bytes = entry.stat(follow_symlinks=False).st_size
    except OSError:
        num_bytes = 0  # it has just gone
    return FileEntry(name=_printable(entry.name), size_mb=round(num_bytes / MB, 3))


def _printable(name: str) -> str:
    """File names may hold bytes that are not UTF-8; JSON may not."""
    return name.encode("utf-8", "backslashreplace").decode()
