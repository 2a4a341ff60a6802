"""What a run's files say, in the shapes of the API's replies."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Literal

from fastapi import Query

from forgellm.errors import RunNotFound
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import NUM_BEST, Checkpoint, list_checkpoints, rank
from forgellm.runs.evaluations import general_loss, probe_accuracy, read_evaluations
from forgellm.runs.metrics import METRICS_NAME
from forgellm.runs.store import Run, active_run, find_run, latest_run
from forgellm.runs.summary import generalisation_gaps, performance_of, progress_percentage
from forgellm.schema.evaluation import EvaluationLine
from forgellm.schema.figures import CheckpointItem, CurvePoint, Performance
from forgellm.schema.manage import RunChangedReply, RunItem, RunReply
from forgellm.schema.run import ACTIVE_PHASES

MB = 1_000_000
RankBy = Literal["validation_loss", "probes", "general"]
TrainingDir = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=1000,
        description="A run's folder, name or training_id; default the current run, else the latest.",
        examples=["models/cpt/my_model"],
    ),
]


def chosen_run(workspace: Workspace, training_dir: str | None) -> Run | None:
    """The run in `training_dir`, else the one that trains, else the latest. Raises RunNotFound."""
    if training_dir is not None:
        return find_run(workspace, training_dir)
    return active_run(workspace) or latest_run(workspace)


def checkpoint_items(run: Run, rank_by: RankBy = "validation_loss") -> list[CheckpointItem]:
    """Best first."""
    measured = {line.iteration: line for line in read_evaluations(run.folder)}
    ranked = rank(list_checkpoints(run.folder))
    if rank_by != "validation_loss":
        # Stable, so that checkpoints that are alike stay in the order of their validation loss.
        ranked.sort(key=lambda checkpoint: _order(measured.get(checkpoint.iteration), rank_by))
    return [
        CheckpointItem(
            iteration=checkpoint.iteration,
            path=run.workspace.relative(checkpoint.weights),
            validation_loss=checkpoint.validation_loss,
            probe_accuracy=probe_accuracy(measured.get(checkpoint.iteration)),
            general_loss=general_loss(measured.get(checkpoint.iteration)),
            rank=number,
            is_best=number == 1,
            size_mb=round(checkpoint.size_bytes / MB, 3),
            created_at=checkpoint.created_at,
        )
        for number, checkpoint in enumerate(ranked, 1)
    ]


def _order(line: EvaluationLine | None, rank_by: RankBy) -> float:
    accuracy, loss = probe_accuracy(line), general_loss(line)
    if rank_by == "probes":
        return math.inf if accuracy is None else -accuracy
    return math.inf if loss is None else loss


def summed_up(run: Run) -> tuple[list[CurvePoint], Performance]:
    """At most 2,000 points of the run's curve, and its figures. Remembered until the run goes on."""
    try:
        found = (run.folder / METRICS_NAME).stat()
    except OSError:
        return [], Performance()
    log = found.st_ino, found.st_size, found.st_mtime_ns
    return _summed_up(run, log, run.state().training_seconds)


@lru_cache(maxsize=16)
def _summed_up(
    run: Run, log: tuple[int, int, int], training_seconds: float
) -> tuple[list[CurvePoint], Performance]:
    # Not at the top: it brings numpy, which a server without runs does without.
    from forgellm.runs.curve import drawn

    table, places, lines = drawn(run.folder)
    gaps = generalisation_gaps(table)[places].tolist()
    points = [
        CurvePoint(**dict(line), generalisation_gap=None if math.isnan(gap) else gap)
        for line, gap in zip(lines, gaps, strict=True)
    ]
    return points, performance_of(table, training_seconds)


def run_item(run: Run) -> RunItem:
    """One line of the list of runs, from small files alone. Raises RunNotFound."""
    record, state = run.record(), run.state()
    checkpoints = list_checkpoints(run.folder)
    best = _best(checkpoints)
    recipe = record.recipe
    return RunItem(
        name=run.name,
        training_id=record.training_id,
        training_type=record.training_type,
        output_dir=run.output_dir,
        model_name=recipe.model_name,
        dataset=recipe.dataset,
        base_run=recipe.base_run,
        lineage=record.lineage,
        created_at=record.created_at,
        phase=state.phase,
        is_training=state.phase in ACTIVE_PHASES,
        current_iteration=state.iteration,
        max_iterations=recipe.max_iterations,
        progress_percentage=progress_percentage(state.iteration, recipe.max_iterations),
        eta_minutes=state.eta_minutes,
        best_validation_loss=best.validation_loss if best else None,
        best_iteration=best.iteration if best else None,
        num_checkpoints=len(checkpoints),
        overfitting=state.overfitting,
    )


def run_items(runs: list[Run]) -> list[RunItem]:
    """As `run_item`; runs that have gone meanwhile are left out."""
    items = []
    for run in runs:
        with suppress(RunNotFound):
            items.append(run_item(run))
    return items


def run_reply(run: Run) -> RunReply:
    """Everything that is known about a run, but for its curve. Raises RunNotFound."""
    record, state, items = run.record(), run.state(), checkpoint_items(run)
    return RunReply(
        run=run_item(run),
        record=record.model_copy(update={"recipe": record.recipe.without_secrets()}),
        state=state,
        checkpoints=items,
        best_checkpoints=[item.iteration for item in items[:NUM_BEST]],
        performance=summed_up(run)[1],
    )


def run_changed(run: Run, message: str) -> RunChangedReply:
    return RunChangedReply(
        message=message,
        name=run.name,
        training_id=run.record().training_id,
        output_dir=run.output_dir,
    )


def _best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    return next(iter(rank(checkpoints)), None)
