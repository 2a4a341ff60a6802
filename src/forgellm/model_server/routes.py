"""The model server's REST routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from forgellm import __version__
from forgellm.envelope import ClosingStream, ForgeJSONResponse, JsonRoute, unless_gone
from forgellm.errors import ForgeError
from forgellm.generation.prompt import build_prompt, require_room
from forgellm.generation.session import CANCELLED, Done, Token, answer
from forgellm.model_server.loading import LoadedModel
from forgellm.model_server.slot import Slot
from forgellm.model_server.turns import AnswerStream, Turns, Work, new_request_id
from forgellm.schema.answers import (
    GENERATE_RESPONSES,
    CancelReply,
    GenerateReply,
    LoadReply,
    ModelServerHealthReply,
    ModelStatusReply,
    UnloadReply,
)
from forgellm.schema.generation import CancelRequest, GenerateRequest, LoadRequest

_NDJSON = "application/x-ndjson"
_REQUEST_ID = "x-request-id"


def make_router(slot: Slot, turns: Turns) -> APIRouter:
    router = APIRouter(prefix="/api", route_class=JsonRoute)

    @router.get("/health")
    def health() -> ModelServerHealthReply:
        """Whether the model server runs."""
        return ModelServerHealthReply(status="healthy", version=__version__)

    @router.post("/model/load")
    def load(body: LoadRequest) -> LoadReply:
        """Start loading a model; generating waits until it is there."""
        slot.load(body)
        return LoadReply(
            message="Model loading started",
            model_name=body.model_name,
            adapter_path=body.adapter_path,
        )

    @router.get("/model/status")
    def status() -> ModelStatusReply:
        """What is loaded or loading."""
        return ModelStatusReply(**slot.status())

    @router.post("/model/generate", response_model=GenerateReply, responses=GENERATE_RESPONSES)
    async def generate(request: Request, body: GenerateRequest) -> Response:
        """Answer a prompt; with `streaming` as server-sent events, or as NDJSON if accepted."""
        media_type = _NDJSON if _NDJSON in request.headers.get("accept", "") else None
        return await unless_gone(request, _reply(slot, turns, body, media_type))

    @router.post("/model/cancel")
    async def cancel(body: CancelRequest | None = None) -> CancelReply:
        """End a running or waiting answer, or all; each ends with `finish_reason` "cancelled"."""
        cancelled = turns.cancel(body.request_id if body else None)
        return CancelReply(message="Generation cancelled", cancelled=cancelled)

    @router.post("/model/unload")
    def unload() -> UnloadReply:
        """Free the model's memory."""
        slot.unload()
        return UnloadReply(message="Model unloaded successfully")

    return router


async def _reply(
    slot: Slot, turns: Turns, body: GenerateRequest, media_type: str | None
) -> Response:
    slot.require_load()
    request_id = body.request_id or new_request_id()
    stream: AnswerStream[Token | Done] = await turns.start(
        request_id,
        lambda may_replace: slot.wait_ready(),
        lambda model: _prepare(model, body),
        [CANCELLED],
    )
    if body.streaming:
        return _streamed(stream, request_id, media_type or "text/event-stream")
    async for item in stream:
        if isinstance(item, Done):
            return ForgeJSONResponse(
                {"success": True, **asdict(item), "request_id": request_id},
                headers={_REQUEST_ID: request_id},
            )
    raise AssertionError("an answer ends with Done or an error")


def _prepare(model: LoadedModel, body: GenerateRequest) -> Work[Token | Done]:
    ids = build_prompt(model.tokenizer, body.prompt, body.history, is_base_model=body.is_base_model)
    require_room(ids, model.engine.info.context_length)

    def work(model: LoadedModel, is_cancelled: Callable[[], bool]) -> Generator[Token | Done]:
        return answer(model.engine, model.tokenizer, ids, body, is_cancelled=is_cancelled)

    return work


def _streamed(stream: AnswerStream[Token | Done], request_id: str, media_type: str) -> Response:
    """Items on the wire as they are made."""
    prefix, suffix = (b"", b"\n") if media_type == _NDJSON else (b"data: ", b"\n\n")

    async def lines() -> AsyncIterator[bytes]:
        async for event in _events(stream, request_id):
            yield prefix + orjson.dumps(event) + suffix

    return ClosingStream(
        lines(),
        stream.aclose,
        media_type=media_type,
        headers={
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            _REQUEST_ID: request_id,
        },
    )


async def _events(
    stream: AnswerStream[Token | Done], request_id: str
) -> AsyncIterator[dict[str, Any]]:
    try:
        async for item in stream:
            if isinstance(item, Done):
                yield {"type": "done", **asdict(item), "request_id": request_id}
            elif item.text:
                yield {"type": "token", "text": item.text}
    except ForgeError as error:
        yield {"type": "error", **error.to_dict(), "request_id": request_id}
