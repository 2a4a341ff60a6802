"""What a run begins with: the model as it is, or a checkpoint of an earlier run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from forgellm.paths import Workspace
from forgellm.runs.checkpoints import verify
from forgellm.runs.lineage import lineage_from, start_checkpoint, with_base_run
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import Ancestor, RunRecord


@dataclass(frozen=True)
class Start:
    """The recipe with its base run pinned, and the checkpoints it descends from, oldest first.

    Attributes:
        weights: a checkpoint's weights to train on, where they are not part of the model.
        template_folder: a run's folder, whose chat template (if it has one) is gone on with.
        continues: the record of the run whose weights are trained on, beside whose model alone
            they mean something.
    """

    recipe: Recipe
    lineage: list[Ancestor] = field(default_factory=list)
    weights: Path | None = None
    template_folder: Path | None = None
    continues: RunRecord | None = None


def find_start(recipe: Recipe, workspace: Workspace) -> Start:
    """Raises RunNotFound, RunEdited, CheckpointNotFound, CheckpointCorrupt, ConfigError."""
    recipe = with_base_run(recipe, workspace, may_wait=False)
    if recipe.base_run is None:
        return Start(recipe)
    run, checkpoint = start_checkpoint(recipe.base_run, workspace)
    run.require_own_files()
    verify(checkpoint)
    lineage = lineage_from(run, checkpoint, recipe.base_run_mode)
    if recipe.base_run_mode == "merged":
        return Start(recipe, lineage)
    return Start(recipe, lineage, checkpoint.weights, run.folder, run.record())
