"""Questions and answers made of a dataset's documents, with the model that the model server holds."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from forgellm.data.datasets import find_dataset
from forgellm.envelope import JsonRoute
from forgellm.errors import ModelNotLoaded, ModelServerUnavailable
from forgellm.paths import Workspace
from forgellm.schema.publishing import JobStarted
from forgellm.schema.questions import QuestionsRequest
from forgellm.web.jobs import Job, JobRunner

_STATUS_SECONDS = 5.0


def make_router(workspace: Workspace, jobs: JobRunner, model_server_url: str) -> APIRouter:
    router = APIRouter(prefix="/api/dataset", route_class=JsonRoute)

    @router.post("/questions")
    def questions(body: QuestionsRequest) -> JobStarted:
        """Make a dataset of questions and answers, as a job; asked for again, it goes on."""
        # Not at the top: the web server should be up before it is needed.
        from forgellm.questions.asker import EndpointAsker
        from forgellm.questions.make import make_questions

        find_dataset(workspace, body.dataset)
        model = _loaded_model(model_server_url)

        def work(job: Job) -> dict[str, Any]:
            with EndpointAsker(f"{model_server_url}/v1", model, style="text") as asker:
                return make_questions(workspace, body, asker, job.report)

        job = jobs.submit("questions", body.name, work, "questions")
        return JobStarted(message="Asking for questions started", job_id=job.job_id)

    return router


def _loaded_model(url: str) -> str:
    """The name below `/v1` of the model that is loaded or loading.

    Raises ModelServerUnavailable, ModelNotLoaded.
    """
    import httpx2  # not at the top: the web server should be up before it is needed

    try:
        with httpx2.Client(base_url=url, timeout=_STATUS_SECONDS, trust_env=False) as client:
            status = client.get("/api/model/status").raise_for_status().json()
            models = client.get("/v1/models").raise_for_status().json()
    except (httpx2.HTTPError, ValueError):
        raise ModelServerUnavailable("The model server does not answer") from None
    if status["model_name"] is None:
        raise ModelNotLoaded("No model is loaded that could ask")
    return str(models["data"][0]["id"])
