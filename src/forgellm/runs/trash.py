"""Runs put aside: `models/.trash/<name>/`, from where they can be brought back until it is emptied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forgellm.atomic import file_lock, read_json, storage_errors, write_json
from forgellm.errors import Conflict, RunNotFound
from forgellm.paths import Workspace, iso_utc
from forgellm.runs.folder_size import folder_size
from forgellm.runs.lineage import dependents, merged_name
from forgellm.runs.manage import exclusive
from forgellm.runs.store import Run, list_runs
from forgellm.schema.run import RunRecord

_NOTE = "trashed.json"


@dataclass(frozen=True)
class TrashedRun:
    """A run in the trash. `name` is its folder there, `original_name` what it is restored as."""

    name: str
    original_name: str
    deleted_at: str
    record: RunRecord
    size_bytes: int


def trash_run(run: Run) -> str:
    """Move a run to the trash and return its name there.

    Raises RunBusy, and Conflict where later runs start from this one: their merged model may have
    to be made again.
    """
    if later := dependents(run):
        raise Conflict(
            f"{len(later)} later runs start from this one" if len(later) > 1
            else "A later run starts from this one",
            suggestion="Delete those first, or keep this one.",
            details={"run": run.name, "later_runs": later[:20]},
        )  # fmt: skip
    trash = _trash(run.workspace)
    with exclusive(run), file_lock(run.workspace.models / ".trash.lock"):
        with storage_errors("the trash"):
            trash.mkdir(exist_ok=True)
        note = {"original_name": run.name, "deleted_at": iso_utc()}
        write_json(run.folder / _NOTE, note)
        target = _free_place(trash, run.name)
        with storage_errors("the trash"):
            os.rename(run.folder, target)
    return target.name


def list_trash(workspace: Workspace) -> list[TrashedRun]:
    """Last deleted first."""
    found = [_read(run, note) for run, note in _trashed(workspace)]
    return sorted(found, key=lambda item: (item.deleted_at, item.name), reverse=True)


def restore_run(workspace: Workspace, name: str) -> Run:
    """Bring a run back to where it was. Raises RunNotFound, or Conflict if its name is taken."""
    with file_lock(workspace.models / ".trash.lock"):
        run, note = _find(workspace, name)
        runs = workspace.runs(run.record().training_type)
        target = runs / Path(note["original_name"]).name
        with file_lock(runs / ".create.lock"), storage_errors("the run folder"):
            if target.exists():
                raise Conflict(
                    "There is another run of that name now",
                    suggestion="Rename that run, then restore this one.",
                    details={"run": target.name},
                )
            os.rename(run.folder, target)
        (target / _NOTE).unlink(missing_ok=True)
    return Run(target, workspace)


def empty_trash(workspace: Workspace) -> tuple[int, int]:
    """Delete for good what is in the trash, and merged models that no run stands on any more.

    Returns how many runs that were, and all bytes.
    """
    with file_lock(workspace.models / ".trash.lock"):
        folders = _folders(workspace)
        unused = _unused_merged_models(workspace)
        num_bytes = sum(folder_size(folder).num_bytes for folder in [*folders, *unused])
        with storage_errors("the trash"):
            for folder in [*folders, *unused]:
                shutil.rmtree(folder)
    return len(folders), num_bytes


def _unused_merged_models(workspace: Workspace) -> list[Path]:
    used = {
        merged_name(item)
        for run in list_runs(workspace)
        for item in run.record().lineage
        if item.mode == "merged"
    }
    merged = workspace.merged_models
    return [path for path in merged.glob("[!.]*") if path.is_dir() and path.name not in used]


def _trash(workspace: Workspace) -> Path:
    return workspace.models / ".trash"


def _folders(workspace: Workspace) -> list[Path]:
    trash = _trash(workspace)
    if not trash.is_dir() or trash.is_symlink():
        return []
    return sorted(path for path in trash.iterdir() if path.is_dir() and not path.is_symlink())


def _trashed(workspace: Workspace) -> Iterator[tuple[Run, dict[str, str]]]:
    for folder in _folders(workspace):
        note = read_json(folder / _NOTE)
        run = Run(folder, workspace)
        try:
            run.record()
        except RunNotFound:
            continue
        if note is not None and isinstance(note.get("original_name"), str):
            yield run, note


def _find(workspace: Workspace, name: str) -> tuple[Run, dict[str, str]]:
    for run, note in _trashed(workspace):
        if run.name == name:
            return run, note
    raise RunNotFound(
        "Run not found in the trash",
        suggestion="See what is in it: GET /api/trash",
        details={"run": name},
    )


def _read(run: Run, note: dict[str, str]) -> TrashedRun:
    size = folder_size(run.folder).num_bytes
    return TrashedRun(
        run.name, note["original_name"], str(note.get("deleted_at", "")), run.record(), size
    )


def _free_place(trash: Path, name: str) -> Path:
    number = 1
    while (target := trash / (name if number == 1 else f"{name}_{number}")).exists():
        number += 1
    return target
