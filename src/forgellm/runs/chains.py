"""Chains of runs: `models/chains/<name>.json` holds the recipes and which run each became.

What has been reached is read from the runs; only the figures of eval stages are written there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from forgellm.atomic import file_lock, read_json, write_json
from forgellm.errors import CheckpointCorrupt, InvalidRequest, NotFound, RunNotFound
from forgellm.paths import Workspace, iso_utc
from forgellm.runs.checkpoints import Checkpoint, weights_sha256
from forgellm.runs.lineage import start_checkpoint
from forgellm.runs.store import Run, find_run
from forgellm.schema.chain import (
    NAME_PATTERN,
    PREVIOUS,
    ChainRecord,
    ChainStage,
    EvalRecipe,
    MeasuredWeights,
    StageEvaluation,
    StageRecipe,
)
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
        """As a stage that trains can be started: `previous` is the run before it."""
        recipe = self.record.stages[number].recipe
        assert isinstance(recipe, Recipe)
        if recipe.base_run != PREVIOUS:
            return recipe
        return recipe.model_copy(update={"base_run": self._base_run(number)})

    def measured_by(self, number: int) -> tuple[Run, Checkpoint] | None:
        """What an eval stage measures; None: its model as that came.

        Raises RunNotFound, CheckpointNotFound.
        """
        base_run = self._base_run(number)
        return start_checkpoint(base_run, self.workspace) if base_run else None

    def is_complete(self, number: int) -> bool:
        """Whether a stage is trained, or the checkpoint that it measures now is the measured one."""
        stage = self.record.stages[number]
        if not isinstance(stage.recipe, EvalRecipe):
            run = self.run_of(number)
            return run is not None and run.state().phase == "completed"
        if stage.evaluation is None or stage.evaluation.result is None:
            return False
        try:
            return stage.evaluation.weights == weights_of(self.measured_by(number))
        except (NotFound, CheckpointCorrupt):
            return False

    def first_incomplete(self) -> int | None:
        """The stage that is to be trained or measured now, from 0."""
        numbers = range(len(self.record.stages))
        return next((number for number in numbers if not self.is_complete(number)), None)

    def set_run(self, number: int, run: Run) -> None:
        """Keep which run a stage has become. Raises DiskFull."""
        self.record.stages[number].training_id = run.record().training_id
        self._write()

    def set_evaluation(self, number: int, evaluation: StageEvaluation) -> None:
        """Keep what an eval stage has found. Raises DiskFull."""
        self.record.stages[number].evaluation = evaluation
        self._write()

    def delete(self) -> None:
        """Forget the chain. Its runs stay."""
        _file(self.workspace, self.record.name).unlink(missing_ok=True)

    def _base_run(self, number: int) -> str | None:
        """Raises RunNotFound if no run has been made yet of the stage before."""
        base_run = self.record.stages[number].recipe.base_run
        if base_run != PREVIOUS:
            return base_run
        before = [s for s in self.record.stages[:number] if isinstance(s.recipe, Recipe)]
        if before[-1].training_id is None:
            raise RunNotFound("The stage before has no run yet")
        return before[-1].training_id

    def _write(self) -> None:
        # What was given is told apart from defaults: a stage may take those from its base run.
        payload = self.record.model_dump(mode="json", exclude_unset=True)
        write_json(_file(self.workspace, self.record.name), payload)


@contextmanager
def held(workspace: Workspace) -> Iterator[None]:
    """While it lasts no other process begins or changes a chain."""
    with file_lock(_folder(workspace) / ".chains.lock"):
        yield


def weights_of(measured: tuple[Run, Checkpoint] | None) -> MeasuredWeights | None:
    """What tells one measured checkpoint from another. Raises CheckpointCorrupt."""
    if measured is None:
        return None
    run, checkpoint = measured
    return MeasuredWeights(
        training_id=run.record().training_id,
        iteration=checkpoint.iteration,
        weights_sha256=weights_sha256(checkpoint),
    )


def open_chain(workspace: Workspace, name: str, recipes: list[StageRecipe]) -> Chain:
    """The chain of that name, with these stages; it is kept from its first run or figures on.

    Where there is one already, its runs are taken over up to the first stage that trains and has
    changed, or whose run is gone; and the figures of eval stages that ask for the same at the same
    place. Raises InvalidRequest.
    """
    file = _file(workspace, name)
    stages = [ChainStage(recipe=recipe) for recipe in recipes]
    known = _read(file)
    if known is not None:
        _take_over(Chain(workspace, known), stages)
    created_at = known.created_at if known else iso_utc()
    return Chain(workspace, ChainRecord(name=name, created_at=created_at, stages=stages))


def _take_over(before: Chain, stages: list[ChainStage]) -> None:
    figures = {place: stage.evaluation for place, stage in _eval_stages(before.record.stages)}
    for place, stage in _eval_stages(stages):
        stage.evaluation = figures.get(place)
    trained = [(n, s) for n, s in enumerate(before.record.stages) if isinstance(s.recipe, Recipe)]
    anew = [stage for stage in stages if isinstance(stage.recipe, Recipe)]
    for (number, old), new in zip(trained, anew, strict=False):
        if old.recipe.model_dump() != new.recipe.model_dump() or before.run_of(number) is None:
            break
        new.training_id = old.training_id


def _eval_stages(stages: list[ChainStage]) -> Iterator[tuple[tuple[int, str], ChainStage]]:
    """Each with its place: how many stages train before it, and what it asks for."""
    num_trained = 0
    for stage in stages:
        if isinstance(stage.recipe, EvalRecipe):
            yield (num_trained, stage.recipe.model_dump_json()), stage
        else:
            num_trained += 1


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
