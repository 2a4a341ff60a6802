"""The model server's REST routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass
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
from forgellm.model_server.shelf import Shelf
from forgellm.model_server.slot import Slot
from forgellm.model_server.token_scores import NamedScore, TokenNames
from forgellm.model_server.turns import AnswerStream, Turns, Wanted, Work, new_request_id
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


@dataclass(frozen=True)
class _Named:
    """A piece of text; with scores, where asked for, of the tokens whose text has begun to appear."""

    text: str
    scores: list[dict[str, Any]] | None


def make_router(shelf: Shelf, turns: Turns) -> APIRouter:
    router = APIRouter(prefix="/api", route_class=JsonRoute)

    @router.get("/health")
    def health() -> ModelServerHealthReply:
        """Whether the model server runs."""
        return ModelServerHealthReply(status="healthy", version=__version__)

    @router.post("/model/load")
    def load(body: LoadRequest) -> LoadReply:
        """Start loading a model; generating waits until it is there."""
        shelf.load(body)
        return LoadReply(
            message="Model loading started",
            model_name=body.model_name,
            adapter_path=body.adapter_path,
        )

    @router.get("/model/status")
    def status() -> ModelStatusReply:
        """What is loaded or loading: the latest model, and all of them in `models`."""
        return ModelStatusReply(**shelf.status())

    @router.post("/model/generate", response_model=GenerateReply, responses=GENERATE_RESPONSES)
    async def generate(request: Request, body: GenerateRequest) -> Response:
        """Answer a prompt; with `streaming` as server-sent events, or as NDJSON if accepted."""
        media_type = _NDJSON if _NDJSON in request.headers.get("accept", "") else None
        return await unless_gone(request, _reply(shelf, turns, body, media_type))

    @router.post("/model/cancel")
    async def cancel(body: CancelRequest | None = None) -> CancelReply:
        """End a running or waiting answer, or all; each ends with `finish_reason` "cancelled"."""
        cancelled = turns.cancel(body.request_id if body else None)
        return CancelReply(message="Generation cancelled", cancelled=cancelled)

    @router.post("/model/unload")
    def unload(body: UnloadRequest | None = None) -> UnloadReply:
        """Free the memory of one model, or without a name of all."""
        body = body or UnloadRequest()
        shelf.unload(body.model_name, body.adapter_path)
        return UnloadReply(message="Model unloaded successfully")

    return router


async def _reply(
    shelf: Shelf, turns: Turns, body: GenerateRequest, media_type: str | None
) -> Response:
    request_id = body.request_id or new_request_id()
    stream: AnswerStream[_Named | Done] = await turns.start(
        request_id,
        _wanted(shelf, body),
        lambda model: _prepare(model, body),
        [CANCELLED],
    )
    if body.streaming:
        return _streamed(stream, request_id, media_type or "text/event-stream")
    scores: list[dict[str, Any]] = []
    async for item in stream:
        if isinstance(item, Done):
            reply = {"success": True, **asdict(item), "request_id": request_id}
            if body.top_logprobs is not None:
                reply["scores"] = scores
            return ForgeJSONResponse(reply, headers={_REQUEST_ID: request_id})
        scores += item.scores or ()
    raise AssertionError("an answer ends with Done or an error")


def _wanted(shelf: Shelf, body: GenerateRequest) -> Wanted:
    async def choose(may_replace: bool) -> Slot:
        if body.model_name is None:
            return shelf.latest()
        return await asyncio.to_thread(shelf.named, body.model_name, body.adapter_path)

    return Wanted(choose, is_latest=body.model_name is None)


def _prepare(model: LoadedModel, body: GenerateRequest) -> Work[_Named | Done]:
    ids = build_prompt(model.tokenizer, body.prompt, body.history, is_base_model=body.is_base_model)
    require_room(ids, model.engine.info.context_length)

    def work(model: LoadedModel, is_cancelled: Callable[[], bool]) -> Generator[_Named | Done]:
        names = None if body.top_logprobs is None else TokenNames(model.tokenizer)
        items = answer(
            model.engine,
            model.tokenizer,
            ids,
            body,
            num_top=body.top_logprobs,
            is_cancelled=is_cancelled,
        )
        with closing(items):
            for item in items:
                yield (
                    item
                    if isinstance(item, Done)
                    else _named(item, names, model.tokenizer.stop_ids)
                )

    return work


def _named(token: Token, names: TokenNames | None, stop_ids: frozenset[int]) -> _Named:
    """The scores are those of the text, so the token that ends an answer is left out."""
    if names is None:
        return _Named(token.text, None)
    found = [score for score in token.scores if score.token.token_id not in stop_ids]
    return _Named(
        token.text, [_score_item(names.score(score.offset, score.token)) for score in found]
    )


def _score_item(score: NamedScore) -> dict[str, Any]:
    top = [{"token": token, "log_prob": log_prob} for token, log_prob in score.top]
    return {"token": score.text, "log_prob": score.log_prob, "top": top}


def _streamed(stream: AnswerStream[_Named | Done], request_id: str, media_type: str) -> Response:
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
    stream: AnswerStream[_Named | Done], request_id: str
) -> AsyncIterator[dict[str, Any]]:
    try:
        async for item in stream:
            if isinstance(item, Done):
                yield {"type": "done", **asdict(item), "request_id": request_id}
            elif item.scores:
                yield {"type": "token", "text": item.text, "scores": item.scores}
            elif item.text:
                yield {"type": "token", "text": item.text}
    except ForgeError as error:
        yield {"type": "error", **error.to_dict(), "request_id": request_id}
