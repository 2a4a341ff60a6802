"""The model server's REST routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from forgellm import __version__
from forgellm.envelope import ClosingStream, ForgeJSONResponse, JsonRoute, unless_gone
from forgellm.errors import ForgeError
from forgellm.generation.session import Done
from forgellm.model_server.backend import Answer, Backend
from forgellm.model_server.tickets import new_request_id
from forgellm.schema.answers import (
    GENERATE_RESPONSES,
    CancelReply,
    GenerateReply,
    LoadReply,
    ModelServerHealthReply,
    ModelStatusReply,
    UnloadReply,
)
from forgellm.schema.generation import CancelRequest, GenerateRequest, LoadRequest, UnloadRequest

_NDJSON = "application/x-ndjson"
_REQUEST_ID = "x-request-id"


def make_router(backend: Backend) -> APIRouter:
    router = APIRouter(prefix="/api", route_class=JsonRoute)

    @router.get("/health")
    async def health() -> ModelServerHealthReply:
        """Whether the model server answers."""
        await backend.check()
        return ModelServerHealthReply(status="healthy", version=__version__)

    @router.post("/model/load")
    async def load(body: LoadRequest) -> LoadReply:
        """Start loading a model; generating waits until it is there."""
        await backend.load(body)
        return LoadReply(
            message="Model loading started",
            model_name=body.model_name,
            adapter_path=body.adapter_path,
        )

    @router.get("/model/status")
    async def status() -> ModelStatusReply:
        """What is loaded or loading: the latest model, and all of them in `models`."""
        return ModelStatusReply(**await backend.status())

    @router.post("/model/generate", response_model=GenerateReply, responses=GENERATE_RESPONSES)
    async def generate(request: Request, body: GenerateRequest) -> Response:
        """Answer a prompt; with `streaming` as server-sent events, or as NDJSON if accepted."""
        media_type = _NDJSON if _NDJSON in request.headers.get("accept", "") else None
        return await unless_gone(request, _reply(backend, body, media_type))

    @router.post("/model/cancel")
    async def cancel(body: CancelRequest | None = None) -> CancelReply:
        """End a running or waiting answer, or all; each ends with `finish_reason` "cancelled"."""
        cancelled = backend.cancel(body.request_id if body else None)
        return CancelReply(message="Generation cancelled", cancelled=cancelled)

    @router.post("/model/unload")
    async def unload(body: UnloadRequest | None = None) -> UnloadReply:
        """Free the memory of one model, or without a name of all."""
        body = body or UnloadRequest()
        await backend.unload(body.model_name, body.adapter_path)
        return UnloadReply(message="Model unloaded successfully")

    return router


async def _reply(backend: Backend, body: GenerateRequest, media_type: str | None) -> Response:
    request_id = body.request_id or new_request_id()
    answer = await backend.generate(body, request_id)
    if body.streaming:
        return _streamed(answer, request_id, media_type or "text/event-stream")
    scores: list[dict[str, Any]] = []
    async for item in answer:
        if isinstance(item, Done):
            reply = {"success": True, **asdict(item), "request_id": request_id}
            if body.top_logprobs is not None:
                reply["scores"] = scores
            return ForgeJSONResponse(reply, headers={_REQUEST_ID: request_id})
        scores += item.scores or ()
    raise AssertionError("an answer ends with Done or an error")


def _streamed(answer: Answer, request_id: str, media_type: str) -> Response:
    """Items on the wire as they are made."""
    prefix, suffix = (b"", b"\n") if media_type == _NDJSON else (b"data: ", b"\n\n")

    async def lines() -> AsyncIterator[bytes]:
        async for event in _events(answer, request_id):
            yield prefix + orjson.dumps(event) + suffix

    return ClosingStream(
        lines(),
        answer.aclose,
        media_type=media_type,
        headers={
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            _REQUEST_ID: request_id,
        },
    )


async def _events(answer: Answer, request_id: str) -> AsyncIterator[dict[str, Any]]:
    try:
        async for item in answer:
            if isinstance(item, Done):
                yield {"type": "done", **asdict(item), "request_id": request_id}
            elif item.scores:
                yield {"type": "token", "text": item.text, "scores": item.scores}
            elif item.text:
                yield {"type": "token", "text": item.text}
    except ForgeError as error:
        yield {"type": "error", **error.to_dict(), "request_id": request_id}
