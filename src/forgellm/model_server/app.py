"""The model server as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp

from forgellm import __version__, envelope
from forgellm.guard import Guard, GuardSettings
from forgellm.model_server import openai, openai_errors
from forgellm.model_server.backend import Backend
from forgellm.model_server.local import LocalModels
from forgellm.model_server.routes import make_router
from forgellm.model_server.shelf import Shelf


def create_app(shelf: Shelf, settings: GuardSettings) -> ASGIApp:
    """`shelf` holds the models; the caller may load one onto it before or while the server runs."""
    return create_app_before(LocalModels(shelf), settings)


def create_app_before(backend: Backend, settings: GuardSettings) -> ASGIApp:
    """The routes, in front of whatever answers them; it is closed when the application ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await backend.aclose()

    app = FastAPI(
        title="ForgeLLM model server",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        default_response_class=envelope.ForgeJSONResponse,
    )
    envelope.install(app)
    openai_errors.install(app)
    app.include_router(make_router(backend))
    app.include_router(openai.make_router(backend))
    return Guard(app, settings)
