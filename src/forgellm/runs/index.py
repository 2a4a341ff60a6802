"""Which runs there are and how each stands, for questions about all of them at once.

It is a memory and nothing else: every question asks the disk again, a stat for each file, and reads
only what has changed since. What it remembers can be dropped at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

from pydantic import ValidationError

from forgellm.atomic import read_json
from forgellm.file_memory import FileMemory, Signature, is_settled, signature
from forgellm.paths import Workspace
from forgellm.runs.lock import LOCK_NAME, is_locked
from forgellm.schema.recipe import TRAINING_TYPES, TrainingType
from forgellm.schema.run import ACTIVE_PHASES, Phase, RunRecord, RunState


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run's folder and what its `run.json` says, as far as runs are found and sorted by it."""

    folder: Path
    training_type: TrainingType
    training_id: str
    created_at: str


class RunIndex:
    """Of one workspace. For several threads, of which one at a time looks through all runs: the next
    then finds in memory what it would have read as well."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._looking = Lock()
        self._records = FileMemory(_read_record)
        self._phases = FileMemory(_read_phase)
        self._unlocked: dict[str, Signature] = {}
        self._found: list[ListedRun] = []
        self._newest_first: list[ListedRun] = []

    def listed(self) -> list[ListedRun]:
        """All runs with a readable `run.json`, newest first."""
        with self._looking:
            return self._listed()

    def _listed(self) -> list[ListedRun]:
        paths = [f"{folder}/run.json" for folder in self._folders()]
        found = [run for path in paths if (run := self._records.get(path)) is not None]
        self._records.keep(paths)
        if found != self._found:
            order = sorted(found, key=lambda run: (run.created_at, run.folder.name), reverse=True)
            self._found, self._newest_first = found, order
        return self._newest_first

    def written_phase(self, folder: Path) -> Phase:
        """The phase that the run's `state.json` says."""
        return self._phases.get(f"{folder}/state.json") or RunState().phase

    def unfinished(self) -> list[Path]:
        """Folders of runs that train, wait in the queue, or were left in the middle."""
        with self._looking:
            folders = list(self._folders())
            self._phases.keep(f"{folder}/state.json" for folder in folders)
            return [Path(f) for f in folders if self._is_unfinished(f) and _is_run(f)]

    def alive(self) -> Iterator[Path]:
        """Folders of runs whose lock is held now."""
        return (Path(f) for f in self._folders() if self._is_locked(f) and _is_run(f))

    def _is_unfinished(self, folder: str) -> bool:
        phase = self._phases.get(f"{folder}/state.json") or RunState().phase
        return phase in ACTIVE_PHASES or phase == "queued" or self._is_locked(folder)

    def _is_locked(self, folder: str) -> bool:
        """As the lock itself says, which need not be tried where it was free and is untouched since.

        Whoever takes it writes itself into its file.
        """
        seen = signature(f"{folder}/{LOCK_NAME}")
        if seen is None or self._unlocked.get(folder) == seen:
            return False
        settled = is_settled(seen)
        if is_locked(folder):
            return True
        if settled:
            self._unlocked[folder] = seen
        return False

    def _folders(self) -> Iterator[str]:
        for kind in TRAINING_TYPES:
            runs = str(self._workspace.runs(kind))
            try:
                names = sorted(os.listdir(runs))
            except OSError:
                continue
            yield from (f"{runs}/{name}" for name in names)


@lru_cache(maxsize=8)
def index_of(workspace: Workspace) -> RunIndex:
    return RunIndex(workspace)


def _is_run(folder: str) -> bool:
    return os.path.isfile(f"{folder}/run.json")


def _read_record(path: str) -> ListedRun | None:
    try:
        record = RunRecord.model_validate(read_json(path) or {})
    except ValidationError:
        return None
    folder = Path(path).parent
    return ListedRun(folder, record.training_type, record.training_id, record.created_at)


def _read_phase(path: str) -> Phase | None:
    try:
        return RunState.model_validate(read_json(path) or {}).phase
    except ValidationError:
        return None
