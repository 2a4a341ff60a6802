"""The web server as an ASGI application. It imports no machine-learning library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp

from forgellm import __version__, envelope
from forgellm.guard import Guard, GuardSettings
from forgellm.paths import Workspace
from forgellm.supervisor import Supervisor
from forgellm.web.api import health, model_proxy, training
from forgellm.web.pages import docs_page, home_page
from forgellm.web.run_status import RunStatus


def create_app(workspace: Workspace, settings: GuardSettings, model_server_url: str) -> ASGIApp:
    """While it runs it also looks after the workspace's trainers; these outlive it."""
    model_server = model_proxy.ModelServer(model_server_url)
    run_status = RunStatus(workspace)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        supervisor = Supervisor(workspace)
        supervisor.start()
        yield
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
    app.include_router(training.make_router(workspace, run_status))
    app.include_router(model_proxy.make_router(model_server))

    @app.get("/", include_in_schema=False)
    def home() -> HTMLResponse:
        return HTMLResponse(home_page(run_status.status()))

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    return Guard(app, settings)
