"""The checkpoints of a run, ranked."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from forgellm.paths import Workspace
from forgellm.runs.checkpoints import NUM_BEST
from forgellm.schema.figures import CheckpointsReply
from forgellm.web.run_figures import RankBy, TrainingDir, checkpoint_items, chosen_run


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.get("/checkpoints")
    def checkpoints(
        training_dir: TrainingDir = None,
        rank_by: Annotated[
            RankBy,
            Query(description="probes: most probes right; general: least loss on general text."),
        ] = "validation_loss",
    ) -> CheckpointsReply:
        """Checkpoints of the current run, else of the latest, best first."""
        run = chosen_run(workspace, training_dir)
        items = checkpoint_items(run, rank_by) if run else []
        return CheckpointsReply(
            checkpoints=items,
            best_checkpoints=[item.iteration for item in items[:NUM_BEST]],
            training_dir=run.output_dir if run else None,
        )

    return router
