"""The web server as an ASGI application. It imports no machine-learning library."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from typing import Any

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from forgellm import __version__, envelope
from forgellm.catalog import list_models
from forgellm.errors import RunNotFound
from forgellm.guard import Guard, GuardSettings
from forgellm.paths import Workspace
from forgellm.runs.store import latest_run
from forgellm.supervisor import Supervisor
from forgellm.web import pages
from forgellm.web.api import (
    chains,
    checkpoints,
    combine,
    conversations,
    dashboard,
    datasets,
    demo,
    estimate,
    evaluate,
    exports,
    filesystem,
    health,
    hosts,
    hub,
    jobs,
    model_proxy,
    models,
    preparation,
    publishing,
    quantise,
    questions,
    queue,
    recipes,
    runs,
    training,
    trash,
    uploads,
)
from forgellm.web.events_on_demand import EventsOnDemand
from forgellm.web.jobs import JobRunner
from forgellm.web.run_figures import summed_up
from forgellm.web.run_status import RunStatus

# Areas of the API, by what they need.
_OF_RUNS = (training, dashboard)
_OF_THE_WORKSPACE = (
    models,
    checkpoints,
    datasets,
    filesystem,
    runs,
    trash,
    queue,
    chains,
    estimate,
    uploads,
    conversations,
    hosts,
)
_WITH_JOBS = (publishing, combine, quantise, preparation, evaluate, hub, demo)

_QUIET_SECONDS = 1.0


def create_app(workspace: Workspace, settings: GuardSettings, model_server_url: str) -> ASGIApp:
    """While it runs it also looks after the workspace's trainers; these outlive it."""
    model_server = model_proxy.ModelServer(model_server_url)
    run_status = RunStatus(workspace)
    events = EventsOnDemand(workspace, settings, model_server)
    job_runner = JobRunner()
    job_runner.listeners.append(events.emit_job)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        supervisor = Supervisor(workspace)
        supervisor.start()
        warm_up = threading.Timer(_QUIET_SECONDS, _warm_up, [workspace])
        warm_up.daemon = True
        warm_up.start()
        yield
        warm_up.cancel()
        job_runner.close()
        await events.close()
        await asyncio.to_thread(supervisor.close)
        await model_server.aclose()

    app = FastAPI(
        title="ForgeLLM",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        default_response_class=envelope.ForgeJSONResponse,
    )
    envelope.install(app)
    app.include_router(health.make_router(workspace, model_server))
    for area in _OF_RUNS:
        app.include_router(area.make_router(workspace, run_status))
    # Before the models, of which any name may be deleted.
    app.include_router(exports.make_router(workspace, job_runner))
    for area in _OF_THE_WORKSPACE:
        app.include_router(area.make_router(workspace))
    for area in _WITH_JOBS:
        app.include_router(area.make_router(workspace, job_runner))
    app.include_router(questions.make_router(workspace, job_runner, model_server_url))
    app.include_router(jobs.make_router(job_runner))
    app.include_router(model_proxy.make_router(model_server))
    app.include_router(recipes.make_router())
    app.include_router(pages.make_router())
    app.mount("/socket.io", events)
    app.mount("/static", GZipMiddleware(_UncachedFiles(directory=pages.STATIC)))

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(pages.docs_page(app.openapi()))

    return Guard(app, settings)


def _warm_up(workspace: Workspace) -> None:
    """Read and import, while nobody waits for it, what the first lists and the first curve need."""
    run = latest_run(workspace)
    list_models(workspace)
    import_module("forgellm.runs.curve")
    if run is not None:
        with suppress(RunNotFound):
            summed_up(run)


class _UncachedFiles(StaticFiles):
    """A browser asks each time whether a file has changed, so that an upgrade is seen at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response
