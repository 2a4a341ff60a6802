"""What the first run needs: the demo's model and documents, brought into the workspace."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from forgellm.envelope import JsonRoute
from forgellm.paths import Workspace
from forgellm.schema.publishing import JobStarted
from forgellm.web.jobs import Job, JobRunner


def make_router(workspace: Workspace, jobs: JobRunner) -> APIRouter:
    router = APIRouter(prefix="/api/demo", route_class=JsonRoute)

    @router.post("/prepare")
    def prepare() -> JobStarted:
        """Bring the demo's model and handbook, as a job; its result has the recipe to start."""
        job = jobs.submit("demo", "demo", lambda job: _prepare(job, workspace), "download")
        return JobStarted(message="Preparing the demo", job_id=job.job_id)

    return router


def _prepare(job: Job, workspace: Workspace) -> dict[str, Any]:
    from forgellm.demo.lessons import CPT
    from forgellm.demo.model import demo_model

    job.report(0.05, "copying the handbook")
    CPT.copy_material(workspace)
    demo_model(workspace, lambda text: job.report(0.1, text))
    return {"recipe": CPT.recipe().model_dump(mode="json", exclude_unset=True)}
