"""Runs that were deleted, until the trash is emptied."""

from __future__ import annotations

from fastapi import APIRouter

from forgellm.envelope import JsonRoute
from forgellm.paths import Workspace
from forgellm.runs.trash import TrashedRun, empty_trash, list_trash, restore_run
from forgellm.schema.manage import (
    EmptiedReply,
    RestoreRequest,
    RunChangedReply,
    TrashItem,
    TrashReply,
)
from forgellm.web.run_figures import MB, run_changed


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api/trash", route_class=JsonRoute)

    @router.get("")
    def trash() -> TrashReply:
        """Deleted runs, the last deleted first."""
        found = list_trash(workspace)
        total = sum(item.size_bytes for item in found)
        return TrashReply(trash=[_item(run) for run in found], total_size_mb=round(total / MB, 3))

    @router.post("/restore")
    def restore(body: RestoreRequest) -> RunChangedReply:
        """Bring a deleted run back to where it was."""
        return run_changed(restore_run(workspace, body.name), "Run restored")

    @router.delete("")
    def empty() -> EmptiedReply:
        """Delete for good what is in the trash."""
        deleted, num_bytes = empty_trash(workspace)
        return EmptiedReply(
            message="Trash emptied", deleted=deleted, freed_mb=round(num_bytes / MB, 3)
        )

    return router


def _item(run: TrashedRun) -> TrashItem:
    return TrashItem(
        name=run.name,
        original_name=run.original_name,
        training_id=run.record.training_id,
        training_type=run.record.training_type,
        model_name=run.record.recipe.model_name,
        deleted_at=run.deleted_at,
        size_mb=round(run.size_bytes / MB, 3),
    )
