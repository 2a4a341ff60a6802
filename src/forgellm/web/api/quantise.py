"""Make a model of 4 or 8 bits a weight."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from forgellm.envelope import JsonRoute
from forgellm.paths import Workspace
from forgellm.publishing.quantise import find_quantisable, quantise_model
from forgellm.schema.publishing import JobStarted
from forgellm.schema.quantising import QuantiseRequest
from forgellm.web.jobs import Job, JobRunner


def make_router(workspace: Workspace, jobs: JobRunner) -> APIRouter:
    router = APIRouter(prefix="/api/models", route_class=JsonRoute)

    @router.post("/quantize")
    def quantize(body: QuantiseRequest) -> JobStarted:
        """Round a model's weights to a model in `models/published/`, checked against it, as a job."""
        _, key = find_quantisable(body, workspace)

        def work(job: Job) -> dict[str, Any]:
            return quantise_model(body, workspace, job.report, job.stop_with).model_dump()

        job = jobs.submit("quantise", key, work, "heavy")
        return JobStarted(message="Quantising started", job_id=job.job_id)

    return router
