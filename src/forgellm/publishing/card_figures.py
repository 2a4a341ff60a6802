"""The measured part of a model card: its checkpoints ranked, what was learned and what forgotten."""

from __future__ import annotations

from collections.abc import Iterable

from forgellm.runs.checkpoints import Checkpoint, list_checkpoints, rank
from forgellm.runs.evaluations import read_evaluations
from forgellm.runs.store import Run
from forgellm.schema.evaluation import EvaluationLine

_SHOWN = 10


def ranking(run: Run, chosen: Checkpoint) -> str:
    """The checkpoints that are left of the run, by validation loss, and where this one stands."""
    ranked = rank(list_checkpoints(run.folder))
    place = [item.iteration for item in ranked].index(chosen.iteration) + 1
    rows = [
        (str(number), f"{item.iteration:,}", _figure(item.validation_loss, 4), _mark(item, chosen))
        for number, item in enumerate(ranked, 1)
        if number <= _SHOWN or item.iteration == chosen.iteration
    ]
    why = (
        "This is the checkpoint with the least validation loss."
        if place == 1 and chosen.validation_loss is not None
        else f"This one is number {place} of {len(ranked)}; it was chosen by hand."
    )
    head = ("Rank", "Iteration", "Validation loss", "")
    return f"## Checkpoints\n\n{why}\n\n{table(head, rows)}"


def before_and_after(run: Run, chosen: Checkpoint) -> str:
    """Probes and general text, of the untouched model and of this checkpoint."""
    lines = read_evaluations(run.folder)
    here = next((line for line in lines if line.iteration == chosen.iteration), None)
    if here is None or lines[0].iteration == here.iteration:
        return "## Learned and forgotten\n\nNot measured in this run (`probe_files`, `general_files`).\n"
    rows = [*_probe_rows(lines[0], here), *_general_rows(lines[0], here)]
    head = ("Measured", "Before", "After", "Change", "Noise")
    return (
        f"## Learned and forgotten\n\n{table(head, rows)}\nChanges are with their standard error, "
        "paired by probe or document. Noise is how far two measurements of the untouched model "
        "differed.\n"
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _probe_rows(before: EvaluationLine, after: EvaluationLine) -> list[tuple[str, ...]]:
    return [
        (
            f"{new.num_probes} probes of `{new.file}`, right",
            f"{100 * old.accuracy:.1f} %",
            f"{100 * new.accuracy:.1f} %",
            _change(new.change, new.change_standard_error, 100, " points"),
            "-" if old.noise_floor is None else f"{100 * old.noise_floor:.1f}",
        )
        for old, new in zip(before.probes, after.probes, strict=False)
    ]


def _general_rows(before: EvaluationLine, after: EvaluationLine) -> list[tuple[str, ...]]:
    return [
        (
            f"Loss on general text `{new.file}`, nats per token",
            _figure(old.loss, 3),
            _figure(new.loss, 3),
            _change(new.change, new.change_standard_error, 1, ""),
            _figure(old.noise_floor, 4),
        )
        for old, new in zip(before.general, after.general, strict=False)
    ]


def _change(change: float | None, error: float | None, factor: int, unit: str) -> str:
    if change is None:
        return "-"
    digits = 1 if factor > 1 else 3
    spread = "" if error is None else f" ± {factor * error:.{digits}f}"
    return f"{factor * change:+.{digits}f}{spread}{unit}"


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _mark(item: Checkpoint, chosen: Checkpoint) -> str:
    return "**published**" if item.iteration == chosen.iteration else ""
