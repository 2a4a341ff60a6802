"""Measure any model that is here, as a job."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from forgellm.envelope import JsonRoute
from forgellm.paths import Workspace
from forgellm.schema.evaluation import EvaluateRequest
from forgellm.schema.publishing import JobStarted
from forgellm.web.jobs import Job, JobRunner


def make_router(workspace: Workspace, jobs: JobRunner) -> APIRouter:
    router = APIRouter(prefix="/api", route_class=JsonRoute)

    @router.post("/evaluate")
    def evaluate(body: EvaluateRequest) -> JobStarted:
        """Score probe files and general text; the job's result has the figures."""
        # Not at the top: it brings the tokenizers' library.
        from forgellm.evaluation.any_model import evaluate_in_child, find_measured

        find_measured(body, workspace)

        def work(job: Job) -> dict[str, Any]:
            return evaluate_in_child(
                body, workspace, on_progress=job.report, on_start=job.stop_with
            )

        job = jobs.submit("evaluate", body.model_dump_json(), work, "heavy")
        return JobStarted(message="Measuring started", job_id=job.job_id)

    return router
