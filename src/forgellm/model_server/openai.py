"""The OpenAI-compatible routes of the model server, for the clients that exist for these."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from forgellm.envelope import ForgeJSONResponse, JsonRoute, unless_gone
from forgellm.errors import ModelNotFound
from forgellm.model_server.backend import Backend
from forgellm.model_server.openai_errors import PREFIX
from forgellm.schema.answers import event_stream, inline_schema
from forgellm.schema.openai import (
    ChatChunk,
    ChatCompletion,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    Model,
    ModelList,
    OpenAIErrorReply,
)

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIErrorReply} for status in (400, 404, 409, 500, 503)
}


def _streamed(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The success of a route that may also answer in chunks."""
    item = {"anyOf": [inline_schema(chunk), inline_schema(OpenAIErrorReply)]}
    return {
        200: {
            "description": "Whole, or with `stream` in chunks",
            "content": event_stream(item, last="[DONE]"),
        }
    }


def make_router(backend: Backend) -> APIRouter:
    router = APIRouter(prefix=PREFIX, route_class=JsonRoute, responses=_REFUSALS)

    @router.get("/models", response_model=ModelList)
    async def models() -> Response:
        """The models that are loaded, then those that can be."""
        return _json(ModelList(data=await backend.models()))

    @router.get("/models/{model_id:path}", response_model=Model)
    async def model(model_id: str) -> Response:
        """One of them."""
        for found in await backend.models():
            if found.id == model_id:
                return _json(found)
        raise ModelNotFound(model_id, [], suggestion="See GET /v1/models for those there are")

    @router.post("/completions", response_model=Completion, responses=_streamed(Completion))
    async def complete(request: Request, body: CompletionRequest) -> Response:
        """Continue text, or score it: with `echo`, `logprobs` and `max_tokens` 0."""
        return await unless_gone(request, backend.complete(body))

    @router.post("/chat/completions", response_model=ChatCompletion, responses=_streamed(ChatChunk))
    async def chat(request: Request, body: ChatCompletionRequest) -> Response:
        """Answer a conversation."""
        return await unless_gone(request, backend.chat(body))

    return router


def _json(reply: BaseModel) -> Response:
    return ForgeJSONResponse(reply.model_dump())
