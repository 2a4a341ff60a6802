"""Files for other programs: made of models, listed, deleted."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from forgellm.envelope import JsonRoute
from forgellm.paths import Workspace
from forgellm.publishing.exports import (
    check_export,
    export_model,
    list_exports,
    remove_export,
)
from forgellm.schema.exports import ExportRemovedReply, ExportRequest, ExportsReply
from forgellm.schema.publishing import JobStarted
from forgellm.web.jobs import Job, JobRunner

ExportName = Annotated[str, Path(max_length=1000, description="The folder's name.")]


def make_router(workspace: Workspace, jobs: JobRunner) -> APIRouter:
    router = APIRouter(prefix="/api/models", route_class=JsonRoute)

    @router.post("/export")
    def export(body: ExportRequest) -> JobStarted:
        """Write a model in another format to `models/exported/`, checked against the model, as a job."""
        key = check_export(body, workspace).name

        def work(job: Job) -> dict[str, Any]:
            return export_model(body, workspace, job.report, job.stop_with)

        job = jobs.submit("export_model", key, work, "heavy")
        return JobStarted(message="Export started", job_id=job.job_id)

    @router.get("/exports")
    def exports() -> ExportsReply:
        """What lies in `models/exported/`, newest first."""
        return ExportsReply(exports=list_exports(workspace))

    @router.delete("/exports/{name}")
    def remove(name: ExportName) -> ExportRemovedReply:
        """Delete an export for good."""
        freed = remove_export(name, workspace)
        return ExportRemovedReply(
            message="Export deleted", name=name, freed_mb=round(freed / 1e6, 3)
        )

    return router
