"""Make one model of several adapters."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from forgellm.envelope import JsonRoute
from forgellm.paths import Workspace
from forgellm.publishing.combine import combine, pinned
from forgellm.schema.combining import CombineRequest
from forgellm.schema.publishing import JobStarted
from forgellm.web.jobs import Job, JobRunner


def make_router(workspace: Workspace, jobs: JobRunner) -> APIRouter:
    router = APIRouter(prefix="/api/models", route_class=JsonRoute)

    @router.post("/combine")
    def combine_adapters(body: CombineRequest) -> JobStarted:
        """Combine adapters of one model to a model in models/published/, as a job."""
        request = pinned(body, workspace)

        def work(job: Job) -> dict[str, Any]:
            return combine(request, workspace, job.report, job.stop_with)

        job = jobs.submit("combine", request.model_dump_json(), work, "heavy")
        return JobStarted(message=f"Combining to published/{request.name}", job_id=job.job_id)

    return router
