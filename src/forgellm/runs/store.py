"""The runs of a workspace: one folder each, which is all that is known about them.

Files in a run's folder are the only link between the trainer and everyone else, so whoever starts
later simply reads them.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from forgellm.atomic import file_lock, overwrite_json, read_json, storage_errors, write_json
from forgellm.errors import DiskFull, PathNotFound, RunEdited, RunNotFound
from forgellm.paths import Workspace, iso_utc, run_name, utc_now
from forgellm.runs.index import index_of
from forgellm.runs.lock import is_locked
from forgellm.runs.seal import COMPANIONS, companions_of, edited_fields, sealed
from forgellm.schema.recipe import TRAINING_TYPES, Recipe, parse_recipe
from forgellm.schema.run import ACTIVE_PHASES, Phase, RunRecord, RunState


@dataclass(frozen=True)
class Run:
    """One run's folder. Holds no state: every answer is read from the disk."""

    folder: Path
    workspace: Workspace

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def output_dir(self) -> str:
        """The folder as the API shows it, e.g. `models/cpt/<name>`."""
        return self.workspace.relative(self.folder)

    @property
    def log_file(self) -> Path:
        return self.folder / "trainer.log"

    @property
    def _stop_file(self) -> Path:
        return self.folder / "stop"

    def record(self) -> RunRecord:
        """What `run.json` says. Raises RunNotFound if there is none that can be read."""
        try:
            return RunRecord.model_validate(_read_or_empty(self.folder / "run.json"))
        except ValidationError:
            raise RunNotFound(
                "This folder holds no readable run.json", details={"run": self.name}
            ) from None

    def write_record(self, record: RunRecord) -> None:
        write_json(self.folder / "run.json", sealed(record.model_dump(mode="json")))

    def require_as_written(self) -> None:
        """Raises RunEdited, naming the fields, where `run.json` is not as it was written."""
        if fields := edited_fields(_read_or_empty(self.folder / "run.json")):
            raise RunEdited(
                f"run.json of {self.name} is not as it was written: {', '.join(fields[:10])}",
                suggestion="Restore it from a copy, or take it as it stands: "
                f"forgellm runs accept {self.name}",
                details={"run": self.name, "fields": fields},
            )

    def require_own_files(self) -> None:
        """Raises RunEdited, naming the files, where what belongs to the weights is not as it was."""
        pinned = self.record().companions
        if pinned is None:
            return
        found = companions_of(self.folder)
        odd = [n for n in COMPANIONS if pinned.get(n) != found.get(n)]
        if odd:
            raise RunEdited(
                f"{', '.join(odd)} of {self.name} changed since the run was made",
                suggestion=f"Restore it from a copy, or take it as it stands: "
                f"forgellm runs accept {self.name}",
                details={"run": self.name, "files": odd},
            )

    def state(self) -> RunState:
        """Where the run is; `interrupted` if its trainer vanished in the middle.

        NOTE: a trainer writes its final state before it lets go of the lock.
        """
        state = self.written_state()
        for _ in range(2):  # once more, as it may have ended or begun between the two looks
            if state.phase not in ACTIVE_PHASES or self.is_alive():
                return state
            state = self.written_state()
        if state.phase in ACTIVE_PHASES:
            return state.model_copy(update={"phase": "interrupted", "eta_minutes": None})
        return state

    def written_state(self) -> RunState:
        """What `state.json` says, whether or not its writer still lives."""
        try:
            return RunState.model_validate(_read_or_empty(self.folder / "state.json"))
        except ValidationError:
            return RunState()

    def write_state(self, state: RunState) -> None:
        """Replace the state. Only for the holder of the run's lock."""
        path, payload = self.folder / "state.json", state.model_dump(mode="json")
        if state.phase in ACTIVE_PHASES:
            # A heartbeat lost with the power is no loss, and waiting for the disk slows training.
            write_json(path, payload, durable=False)
            return
        try:
            write_json(path, payload)
        except DiskFull:
            overwrite_json(path, payload)  # how a run ended is worth more than a clean replace

    def is_alive(self) -> bool:
        return is_locked(self.folder)

    def request_stop(self, grace_seconds: float = 60.0) -> None:
        """Ask the trainer to stop; after the grace period the supervisor may end it.

        A second request can only shorten the time left.
        """
        deadline = time.time() + max(0.0, grace_seconds)
        if (earlier := self.stop_deadline()) is not None:
            deadline = min(deadline, earlier)
        # The deadline is the file's own date: even a full disk takes an empty file.
        with storage_errors("the stop request"):
            self._stop_file.touch()
            os.utime(self._stop_file, (deadline, deadline))

    def stop_requested(self) -> bool:
        return self._stop_file.exists()

    def stop_deadline(self) -> float | None:
        """When the run may be ended by force, in seconds since 1970; None without a request."""
        try:
            return self._stop_file.stat().st_mtime
        except OSError:
            return None

    def clear_stop_request(self) -> None:
        self._stop_file.unlink(missing_ok=True)


def create_run(
    workspace: Workspace,
    recipe: Recipe,
    max_seq_length: int,
    *,
    phase: Phase = "preparing",
    now: datetime | None = None,
) -> Run:
    """A new run's folder, named, numbered and with its defaults filled in.

    Raises ConfigError if the filled-in recipe contradicts itself, DiskFull, TrainingFailed.
    """
    now = (now or utc_now()).astimezone(UTC)
    recipe = recipe.model_copy(update={"max_seq_length": max_seq_length}).resolved()
    recipe = parse_recipe(recipe.model_dump())
    runs = workspace.runs(recipe.training_type)
    with file_lock(runs / ".create.lock"):
        run = Run(_make_folder(runs, run_name(recipe, max_seq_length, now)), workspace)
        record = RunRecord(
            training_id=_free_training_id(runs, f"{recipe.training_type}_{now:%Y%m%d_%H%M%S}"),
            name=run.name,
            training_type=recipe.training_type,
            created_at=iso_utc(now),
            recipe=recipe,
        )
        run.write_state(RunState(phase=phase, heartbeat=iso_utc(now)))
        run.write_record(record)  # last: from here on readers see the run
    return run


def open_run(workspace: Workspace, folder: Path) -> Run:
    """The run in `folder`. Raises RunNotFound if there is none."""
    run = Run(folder, workspace)
    run.record()
    return run


def find_run(workspace: Workspace, name_or_id_or_path: str) -> Run:
    """The run a user means by its name, its training_id or its path. Raises RunNotFound."""
    wanted = name_or_id_or_path.strip()
    for below in (workspace.root, workspace.models):
        try:
            folder = workspace.resolve(wanted, below=below)
        except PathNotFound:
            continue
        # Only where runs live: not, say, in the trash.
        lives_here = folder.parent in [workspace.runs(kind).resolve() for kind in TRAINING_TYPES]
        if lives_here and (folder / "run.json").is_file():
            return open_run(workspace, folder)
    for listed in index_of(workspace).listed():
        if wanted in (listed.folder.name, listed.training_id):
            return Run(listed.folder, workspace)
    raise RunNotFound(
        "Run not found",
        suggestion="Give a run's name, its training_id or its folder.",
        details={"run": wanted, "searched_paths": [f"models/{kind}" for kind in TRAINING_TYPES]},
    )


def list_runs(workspace: Workspace) -> list[Run]:
    """All runs, newest first. Folders without a readable `run.json` are passed over."""
    return [Run(listed.folder, workspace) for listed in index_of(workspace).listed()]


def select_runs(workspace: Workspace, phase: Phase | None, training_type: str | None) -> list[Run]:
    """Of all runs, newest first, those in that phase and of that type."""
    index = index_of(workspace)
    found = []
    for listed in index.listed():
        if training_type is not None and listed.folder.parent.name != training_type:
            continue
        run = Run(listed.folder, workspace)
        if phase is not None:
            written = index.written_phase(listed.folder)
            # What is written down does not say whether its writer still lives.
            if phase != (run.state().phase if written in ACTIVE_PHASES else written):
                continue
        found.append(run)
    return found


def latest_run(workspace: Workspace) -> Run | None:
    newest = next(iter(index_of(workspace).listed()), None)
    return Run(newest.folder, workspace) if newest else None


def active_run(workspace: Workspace) -> Run | None:
    """The run that is training now."""
    folder = next(index_of(workspace).alive(), None)
    return Run(folder, workspace) if folder else None


def unfinished_runs(workspace: Workspace) -> list[Run]:
    """The runs that train, wait in the queue, or were left in the middle, in no order."""
    return [Run(folder, workspace) for folder in index_of(workspace).unfinished()]


def _make_folder(runs: Path, name: str) -> Path:
    """`runs/name`, or with `_2`, `_3`, ... where that is taken. Each caller gets its own."""
    number = 1
    with storage_errors("the run folder"):
        while True:
            folder = runs / (name if number == 1 else f"{name}_{number}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1


def _free_training_id(runs: Path, wanted: str) -> str:
    taken = {_read_or_empty(path).get("training_id") for path in runs.glob("*/run.json")}
    number = 1
    while (training_id := wanted if number == 1 else f"{wanted}_{number}") in taken:
        number += 1
    return training_id


def _read_or_empty(path: Path) -> dict[str, Any]:
    return read_json(path) or {}
