"""The same run again: from its `run.json`, and how alike the two turned out."""

from __future__ import annotations

from dataclasses import dataclass

from forgellm.runs.metrics import effective, read_lines
from forgellm.runs.store import Run
from forgellm.schema.recipe import PRIVATE_FIELDS, Recipe, parse_recipe
from forgellm.schema.run import BaseFile

_DATA = ("fingerprint", "tokenizer_fingerprint", "replay_fingerprint", "train_tokens")


@dataclass(frozen=True)
class Likeness:
    """How a run compares with the one it repeats.

    Attributes:
        changed: what differed before anything was learned, as sentences.
        compared: reports of loss that both have.
        first_difference: the first iteration whose loss is not the same number; None for none.
        largest_difference: of all losses compared, in nats.
    """

    changed: list[str]
    compared: int
    first_difference: int | None
    largest_difference: float


def recipe_again(run: Run) -> Recipe:
    """The recipe that repeats a run: as it was resolved, with the engine and the type of numbers
    that were chosen for it. Raises RunNotFound, RunEdited, ConfigError."""
    run.require_as_written()
    record = run.record()
    fields = record.recipe.model_dump(exclude=set(PRIVATE_FIELDS), exclude_none=True)
    chosen = {"engine": record.engine, "dtype": record.dtype}
    return parse_recipe(fields | {name: value for name, value in chosen.items() if value})


def likeness(first: Run, second: Run) -> Likeness:
    """Compare what both started from, and every loss that both reported."""
    old, new = _losses(first), _losses(second)
    both = sorted(old.keys() & new.keys())
    gaps = {place: abs(old[place] - new[place]) for place in both if old[place] != new[place]}
    return Likeness(
        changed=_changed(first, second),
        compared=len(both),
        first_difference=min(gaps)[0] if gaps else None,
        largest_difference=max(gaps.values(), default=0.0),
    )


def _losses(run: Run) -> dict[tuple[int, str], float]:
    """By iteration and kind."""
    found = {}
    for line in effective(read_lines(run.folder)[0]):
        for kind in ("training_loss", "validation_loss"):
            if (value := getattr(line, kind)) is not None:
                found[line.iteration, kind] = value
    return found


def _short(file: BaseFile | None) -> str | None:
    return None if file is None else file.sha256[:12]


def _changed(first: Run, second: Run) -> list[str]:
    old, new = first.record(), second.record()
    pairs = [(f"data: {name}", old.data.get(name), new.data.get(name)) for name in _DATA] + [
        (f"version of {name}", value, new.versions.get(name))
        for name, value in old.versions.items()
    ]
    pairs += [
        (name, getattr(old, name), getattr(new, name)) for name in ("engine", "device", "dtype")
    ]
    if old.base_files and new.base_files:
        pairs += [
            (f"model: {name}", _short(old.base_files.get(name)), _short(new.base_files.get(name)))
            for name in sorted(old.base_files.keys() | new.base_files.keys())
        ]
    return [f"{name} was {before}, is {now}" for name, before, now in pairs if before != now]
