"""Chains of runs: `models/chains/<name>.json` holds the recipes and which run each became.

What has been reached is not written there: it is read from the runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from forgellm.atomic import read_json, write_json
from forgellm.errors import InvalidRequest, RunNotFound
from forgellm.paths import Workspace, iso_utc
from forgellm.runs.lock import file_lock
from forgellm.runs.store import Run, find_run
from forgellm.schema.chain import NAME_PATTERN, PREVIOUS, ChainRecord, ChainStage
from forgellm.schema.recipe import Recipe


@dataclass(frozen=True)
class Chain:
    """A chain in a workspace. Change it only within `held`."""

    workspace: Workspace
    record: ChainRecord

    def run_of(self, number: int) -> Run | None:
        """The run of stage `number`, from 0; None if there is none (any more)."""
        training_id = self.record.stages[number].training_id
        if training_id is None:
            return None
        try:
            return find_run(self.workspace, training_id)
        except RunNotFound:
            return None

    def recipe_of(self, number: int) -> Recipe:
        """As it can be started: `previous` is the run of the stage before."""
        recipe = self.record.stages[number].recipe
        if recipe.base_run != PREVIOUS:
            return recipe
        before = self.record.stages[number - 1].training_id
        return recipe.model_copy(update={"base_run": before})

    def first_incomplete(self) -> int | None:
        """The stage that is to be trained now, from 0."""
        for number in range(len(self.record.stages)):
            run = self.run_of(number)
            if run is None or run.state().phase != "completed":
                return number
        return None

    def set_run(self, number: int, run: Run) -> None:
        """Keep which run a stage has become. Raises DiskFull."""
        self.record.stages[number].training_id = run.record().training_id
        self._write()

    def delete(self) -> None:
        """Forget the chain. Its runs stay."""
        _file(self.workspace, self.record.name).unlink(missing_ok=True)

    def _write(self) -> None:
        # What was given is told apart from defaults: a stage may take those from its base run.
        payload = self.record.model_dump(mode="json", exclude_unset=True)
        write_json(_file(self.workspace, self.record.name), payload)


@contextmanager
def held(workspace: Workspace) -> Iterator[None]:
    """While it lasts no other process begins or changes a chain."""
    with file_lock(_folder(workspace) / ".chains.lock"):
        yield


def open_chain(workspace: Workspace, name: str, recipes: list[Recipe]) -> Chain:
    """The chain of that name, with these stages; it is kept from its first run on.

    Where there is one already, its runs are taken over up to the first stage that has changed or
    whose run is gone. Raises InvalidRequest.
    """
    file = _file(workspace, name)
    stages = [ChainStage(recipe=recipe) for recipe in recipes]
    known = _read(file)
    if known is not None:
        before = Chain(workspace, known)
        for number, (old, new) in enumerate(zip(known.stages, stages, strict=False)):
            if old.recipe.model_dump() != new.recipe.model_dump() or before.run_of(number) is None:
                break
            new.training_id = old.training_id
    created_at = known.created_at if known else iso_utc()
    return Chain(workspace, ChainRecord(name=name, created_at=created_at, stages=stages))


def find_chain(workspace: Workspace, name: str) -> Chain:
    """Raises RunNotFound."""
    known = _read(_file(workspace, name)) if re.fullmatch(NAME_PATTERN, name) else None
    if known is None:
        raise RunNotFound("Chain not found", suggestion="See the chains there are: GET /api/chains")
    return Chain(workspace, known)


def list_chains(workspace: Workspace) -> list[Chain]:
    """Newest first."""
    records = [record for file in _folder(workspace).glob("*.json") if (record := _read(file))]
    records.sort(key=lambda record: (record.created_at, record.name), reverse=True)
    return [Chain(workspace, record) for record in records]


def _folder(workspace: Workspace) -> Path:
    return workspace.models / "chains"


def _file(workspace: Workspace, name: str) -> Path:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            "A chain's name has up to 100 letters, digits and . _ + -, and begins with one of the "
            "first two",
            suggestion="Name it in the file: `chain: NAME`",
        )
    return _folder(workspace) / f"{name}.json"


def _read(file: Path) -> ChainRecord | None:
    try:
        return ChainRecord.model_validate(read_json(file) or {}, strict=False)
    except ValidationError:
        return None
