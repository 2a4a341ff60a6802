"""Find models by a part of their name, bring new ones from the hub, and send own ones there."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from forgellm.catalog import ListedModel, list_models
from forgellm.catalog.find import is_hub_id
from forgellm.envelope import JsonRoute
from forgellm.errors import InvalidRequest
from forgellm.paths import Workspace
from forgellm.schema.publishing import DownloadRequest, FoundModel, JobStarted, SearchReply
from forgellm.schema.push import PushRequest
from forgellm.web.jobs import Job, JobRunner


def make_router(workspace: Workspace, jobs: JobRunner) -> APIRouter:
    router = APIRouter(prefix="/api/models", route_class=JsonRoute)

    @router.get("/search")
    def search(q: Annotated[str, Query(max_length=200)] = "") -> SearchReply:
        """Models on this machine whose name contains every word of `q`."""
        words = q.casefold().split()
        found = [m for m in list_models(workspace) if all(w in _searched(m) for w in words)]
        return SearchReply(query=q, models=[_shown(model) for model in found])

    @router.post("/download")
    def download(body: DownloadRequest) -> JobStarted:
        """Bring a model from the hub, as a job; what has arrived is kept if it is cancelled."""
        if not is_hub_id(body.model_name):
            raise InvalidRequest(
                "model_name is not the id of a model on the hub",
                suggestion="Give an id such as HuggingFaceTB/SmolLM2-135M-Instruct.",
            )
        key = f"{body.model_name}@{body.revision}"
        job = jobs.submit("download", key, lambda job: _pull(job, body), "download")
        return JobStarted(message="Download started", job_id=job.job_id)

    @router.post("/push")
    def push(body: PushRequest) -> JobStarted:
        """Send a published model or an export to the hub, as a job; private unless it says no."""
        from forgellm.publishing import push as pushing

        pushing.find_pushed(body.model_name, workspace)

        def work(job: Job) -> dict[str, Any]:
            return pushing.push(body, workspace, job.report, job.stop_with).model_dump()

        job = jobs.submit("push", body.model_dump_json(), work, "download")
        return JobStarted(message="Push started", job_id=job.job_id)

    return router


def _pull(job: Job, wanted: DownloadRequest) -> dict[str, Any]:
    from forgellm.catalog.hub import pull  # brings an HTTP client

    size = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal size
        size = total
        job.report(done / max(1, total), f"{done / 1e9:.2f} of {total / 1e9:.2f} GB")

    pull(wanted.model_name, wanted.revision, on_progress)
    return {
        "model_name": wanted.model_name,
        "revision": wanted.revision,
        "size_gb": round(size / 1e9, 3),
    }


def _searched(model: ListedModel) -> str:
    return f"{model.name} {model.path or ''}".casefold()


def _shown(model: ListedModel) -> FoundModel:
    return FoundModel(
        kind=model.kind,
        name=model.name,
        path=model.path,
        type=model.type,
        size_gb=model.size_gb,
        created_at=model.created_at,
    )
