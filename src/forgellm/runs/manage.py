"""Runs renamed and copied, and the care that none is touched while it trains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from forgellm.atomic import file_lock, read_json, storage_errors
from forgellm.errors import Conflict, InvalidRequest, RunBusy
from forgellm.paths import RUN_NAME
from forgellm.runs.checkpoints import delete_checkpoint
from forgellm.runs.lineage import dependents
from forgellm.runs.lock import RunLock
from forgellm.runs.seal import COMPANIONS, companions_of, edited_fields
from forgellm.runs.store import Run
from forgellm.schema.recipe import Recipe, parse_recipe

_FILLED_IN = ("learning_rate", "min_lr", "warmup_steps", "lora_alpha", "eval_every")


@contextmanager
def exclusive(run: Run) -> Iterator[None]:
    """While it lasts nobody can train the run. Raises RunBusy if it trains or is queued."""
    with RunLock(run.folder).acquire():
        run.record()  # raises if it was moved between being found and being locked
        if run.written_state().phase == "queued":
            raise RunBusy(
                "The run waits in the queue",
                suggestion="Take it off the queue first: DELETE /api/queue/{name}",
                details={"run": run.name},
            )
        yield


def rename_run(run: Run, name: str) -> Run:
    """Raises RunBusy, RunEdited, Conflict if the name is taken, InvalidRequest if it cannot be one."""
    if not RUN_NAME.fullmatch(name) or name.endswith("."):
        raise InvalidRequest(
            "A run's name has up to 201 letters, digits and . _ + -, and begins with one of the "
            "first two"
        )
    target = run.folder.parent / name
    with exclusive(run), file_lock(run.folder.parent / ".create.lock"):
        if target.exists():
            raise Conflict("There is a run of that name", details={"run": name})
        run.require_as_written()
        with storage_errors("the run folder"):
            os.rename(run.folder, target)
        renamed = Run(target, run.workspace)
        renamed.write_record(renamed.record().model_copy(update={"name": name}))
    return renamed


def accept_record(run: Run) -> list[str]:
    """Take `run.json` and what belongs to the weights as they stand, seal them anew and note that they
    were edited; the fields and files that were.

    Raises RunBusy, and RunNotFound where it says nothing that can be read.
    """
    with RunLock(run.folder).acquire():
        record = run.record()
        fields = edited_fields(read_json(run.folder / "run.json") or {})
        if record.companions is not None:
            found = companions_of(run.folder)
            fields += [n for n in COMPANIONS if record.companions.get(n) != found.get(n)]
            record = record.model_copy(update={"companions": found})
        if fields:
            note = f"the run was edited and accepted as it stood: {', '.join(fields)}"
            run.write_record(record.model_copy(update={"warnings": [*record.warnings, note]}))
    return fields


def remove_checkpoint(run: Run, iteration: int) -> None:
    """For good. Raises RunBusy, CheckpointNotFound, and Conflict where later runs start from it."""
    if later := dependents(run, iteration):
        raise Conflict(
            f"{len(later)} later runs start from this checkpoint" if len(later) > 1
            else "A later run starts from this checkpoint",
            suggestion="Delete those first, or keep this one.",
            details={"run": run.name, "iteration": iteration, "later_runs": later[:20]},
        )  # fmt: skip
    with exclusive(run), storage_errors("the checkpoint"):
        delete_checkpoint(run.folder, iteration)


def clone_recipe(run: Run, overrides: dict[str, Any]) -> Recipe:
    """The run's recipe with `overrides`. Raises ConfigError.

    What had been filled in from other fields is left open again, to follow the overrides.
    """
    recipe = run.record().recipe
    open_again = {
        name: None
        for name in _FILLED_IN
        if getattr(recipe.model_copy(update={name: None}).resolved(), name) == getattr(recipe, name)
    }
    return parse_recipe({**recipe.model_dump(), "queue": False, **open_again, **overrides})
