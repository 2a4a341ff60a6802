"""The OpenAI-compatible routes of the model server, for the clients that exist for these."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from forgellm.envelope import ClosingStream, ForgeJSONResponse, JsonRoute, unless_gone
from forgellm.errors import ForgeError
from forgellm.model_server.openai_answers import (
    Piece,
    if_cancelled,
    num_prompts,
    prepare_chat,
    prepare_completion,
)
from forgellm.model_server.openai_errors import PREFIX, error_body
from forgellm.model_server.openai_models import known_model, known_models, slot_named
from forgellm.model_server.openai_replies import ChatReplies, CompletionReplies, Replies
from forgellm.model_server.shelf import Shelf
from forgellm.model_server.turns import AnswerStream, Turns, Wanted, new_request_id
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
    Usage,
)

_Answers = AnswerStream[Piece | Usage]
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


def make_router(shelf: Shelf, turns: Turns) -> APIRouter:
    router = APIRouter(prefix=PREFIX, route_class=JsonRoute, responses=_REFUSALS)

    @router.get("/models", response_model=ModelList)
    def models() -> Response:
        """The models that are loaded, then those that can be."""
        return _json(ModelList(data=known_models(shelf)))

    @router.get("/models/{model_id:path}", response_model=Model)
    def model(model_id: str) -> Response:
        """One of them."""
        return _json(known_model(shelf, model_id))

    @router.post("/completions", response_model=Completion, responses=_streamed(Completion))
    async def complete(request: Request, body: CompletionRequest) -> Response:
        """Continue text, or score it: with `echo`, `logprobs` and `max_tokens` 0."""
        request_id = new_request_id("cmpl-")
        replies = CompletionReplies(request_id, _now(), body.model, body.logprobs is not None)

        async def reply() -> Response:
            answers: _Answers = await turns.start(
                request_id,
                Wanted(lambda may_replace: slot_named(shelf, body.model, may_replace)),
                lambda model: prepare_completion(model, body),
                if_cancelled(num_prompts(body) * body.n),
            )
            return await _reply(answers, replies, body)

        return await unless_gone(request, reply())

    @router.post("/chat/completions", response_model=ChatCompletion, responses=_streamed(ChatChunk))
    async def chat(request: Request, body: ChatCompletionRequest) -> Response:
        """Answer a conversation."""
        request_id = new_request_id("chatcmpl-")
        replies = ChatReplies(request_id, _now(), body.model, bool(body.logprobs))

        async def reply() -> Response:
            answers: _Answers = await turns.start(
                request_id,
                Wanted(lambda may_replace: slot_named(shelf, body.model, may_replace)),
                lambda model: prepare_chat(model, body),
                if_cancelled(body.n),
            )
            return await _reply(answers, replies, body)

        return await unless_gone(request, reply())

    return router


def _now() -> int:
    return int(time.time())


def _json(reply: BaseModel) -> Response:
    return ForgeJSONResponse(reply.model_dump())


async def _reply(
    answers: _Answers, replies: Replies, body: CompletionRequest | ChatCompletionRequest
) -> Response:
    if body.stream:
        options = body.stream_options
        return ClosingStream(
            _events(answers, replies, with_usage=options is not None and options.include_usage),
            answers.aclose,
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
    choices: defaultdict[int, list[Piece]] = defaultdict(list)
    async for item in answers:
        if isinstance(item, Usage):
            return _json(replies.whole([choices[index] for index in sorted(choices)], item))
        choices[item.index].append(item)
    raise AssertionError("answers end with their usage or an error")


async def _events(answers: _Answers, replies: Replies, *, with_usage: bool) -> AsyncIterator[bytes]:
    try:
        async for item in answers:
            if not isinstance(item, Usage):
                for chunk in replies.chunks(item):
                    yield _event(chunk.model_dump())
            elif with_usage:
                yield _event(replies.last_chunk(item).model_dump())
    except ForgeError as error:
        yield _event(error_body(error.to_dict(), error.status))
        return
    yield b"data: [DONE]\n\n"


def _event(content: object) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
