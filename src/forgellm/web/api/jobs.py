"""What works in the background: list, look at, cancel."""

from __future__ import annotations

from fastapi import APIRouter

from forgellm.envelope import JsonRoute
from forgellm.schema.publishing import JobReply, JobsReply
from forgellm.web.jobs import JobRunner


def make_router(jobs: JobRunner) -> APIRouter:
    router = APIRouter(prefix="/api/jobs", route_class=JsonRoute)

    @router.get("")
    def list_jobs() -> JobsReply:
        """Jobs that wait, run, or ended lately, newest first."""
        return JobsReply(jobs=[job.item() for job in jobs.latest()])

    @router.get("/{job_id}")
    def get_job(job_id: str) -> JobReply:
        """One job."""
        return JobReply(job=jobs.get(job_id).item())

    @router.post("/{job_id}/cancel")
    def cancel_job(job_id: str) -> JobReply:
        """Ask a job to end; what it has not finished is removed."""
        return JobReply(job=jobs.cancel(job_id).item())

    return router
