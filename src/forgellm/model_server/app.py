"""The model server as an ASGI application."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp

from forgellm import __version__, envelope
from forgellm.guard import Guard, GuardSettings
from forgellm.model_server import openai, openai_errors
from forgellm.model_server.routes import make_router
from forgellm.model_server.shelf import Shelf
from forgellm.model_server.turns import Turns


def create_app(shelf: Shelf, settings: GuardSettings) -> ASGIApp:
    """`shelf` holds the models; the caller may load one onto it before or while the server runs."""
    app = FastAPI(
        title="ForgeLLM model server",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        default_response_class=envelope.ForgeJSONResponse,
    )
    envelope.install(app)
    openai_errors.install(app)
    turns = Turns()
    app.include_router(make_router(shelf, turns))
    app.include_router(openai.make_router(shelf, turns))
    return Guard(app, settings)
