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
from forgellm.generation.session import Done, Token
from forgellm.model_server.slot import Slot
from forgellm.model_server.turns import AnswerStream, Turns, start_answer
from forgellm.schema.generation import GenerateRequest, LoadRequest

_NDJSON = "application/x-ndjson"


def make_router(slot: Slot) -> APIRouter:
    router = APIRouter(prefix="/api", route_class=JsonRoute)
    turns = Turns()

    @router.get("/health")
    def health() -> dict[str, Any]:
        """Whether the model server runs."""
        return {"success": True, "status": "healthy", "version": __version__}

    @router.post("/model/load")
    def load(body: LoadRequest) -> dict[str, Any]:
        """Start loading a model; generating waits until it is there."""
        slot.load(body)
        return {
            "success": True,
            "message": "Model loading started",
            "model_name": body.model_name,
            "adapter_path": body.adapter_path,
        }

    @router.get("/model/status")
    def status() -> dict[str, Any]:
        """What is loaded or loading."""
        return {"success": True, **slot.status()}

    @router.post("/model/generate")
    async def generate(request: Request, body: GenerateRequest) -> Response:
        """Answer a prompt; with `streaming` as server-sent events, or as NDJSON if accepted."""
        media_type = _NDJSON if _NDJSON in request.headers.get("accept", "") else None
        return await unless_gone(request, _reply(slot, turns, body, media_type))

    @router.post("/model/unload")
    def unload() -> dict[str, Any]:
        """Free the model's memory."""
        slot.unload()
        return {"success": True, "message": "Model unloaded successfully"}

    return router


async def _reply(
    slot: Slot, turns: Turns, body: GenerateRequest, media_type: str | None
) -> Response:
    stream = await start_answer(slot, turns, body)
    if body.streaming:
        return _streamed(stream, media_type or "text/event-stream")
    async for item in stream:
        if isinstance(item, Done):
            return ForgeJSONResponse({"success": True, **asdict(item)})
    raise AssertionError("an answer ends with Done or an error")


def _streamed(stream: AnswerStream, media_type: str) -> Response:
    """Items on the wire as they are made."""
    prefix, suffix = (b"", b"\n") if media_type == _NDJSON else (b"data: ", b"\n\n")
    return ClosingStream(
        _lines(stream, prefix, suffix),
        stream.aclose,
        media_type=media_type,
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


async def _lines(stream: AnswerStream, prefix: bytes, suffix: bytes) -> AsyncIterator[bytes]:
    try:
        async for item in stream:
            yield prefix + orjson.dumps(_event(item)) + suffix
    except ForgeError as error:
        yield prefix + orjson.dumps({"type": "error", **error.to_dict()}) + suffix


def _event(item: Token | Done) -> dict[str, Any]:
    return {"type": "done" if isinstance(item, Done) else "token", **asdict(item)}
