"""OpenAI's replies made by the models of this process."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator

from pydantic import BaseModel
from starlette.responses import Response

from forgellm.envelope import ClosingStream, ForgeJSONResponse
from forgellm.errors import ForgeError
from forgellm.model_server.openai_answers import (
    Piece,
    if_cancelled,
    num_prompts,
    prepare_chat,
    prepare_completion,
)
from forgellm.model_server.openai_errors import error_body
from forgellm.model_server.openai_events import HEADERS, LAST, event
from forgellm.model_server.openai_models import slot_named
from forgellm.model_server.openai_replies import ChatReplies, CompletionReplies, Replies
from forgellm.model_server.shelf import Shelf
from forgellm.model_server.tickets import new_request_id
from forgellm.model_server.turns import AnswerStream, Turns, Wanted
from forgellm.schema.openai import ChatCompletionRequest, CompletionRequest, Usage

_Answers = AnswerStream[Piece | Usage]


async def completion_reply(shelf: Shelf, turns: Turns, body: CompletionRequest) -> Response:
    """See `Backend.complete`."""
    request_id = new_request_id("cmpl-")
    replies = CompletionReplies(request_id, _now(), body.model, body.logprobs is not None)
    answers: _Answers = await turns.start(
        request_id,
        Wanted(lambda may_replace: slot_named(shelf, body.model, may_replace)),
        lambda model: prepare_completion(model, body),
        if_cancelled(num_prompts(body) * body.num_choices),
    )
    return await _reply(answers, replies, body)


async def chat_reply(shelf: Shelf, turns: Turns, body: ChatCompletionRequest) -> Response:
    """See `Backend.chat`."""
    request_id = new_request_id("chatcmpl-")
    replies = ChatReplies(request_id, _now(), body.model, bool(body.logprobs))
    answers: _Answers = await turns.start(
        request_id,
        Wanted(lambda may_replace: slot_named(shelf, body.model, may_replace)),
        lambda model: prepare_chat(model, body),
        if_cancelled(body.num_choices),
    )
    return await _reply(answers, replies, body)


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
            _events(answers, replies, with_usage=bool(options and options.include_usage)),
            answers.aclose,
            media_type="text/event-stream",
            headers=HEADERS,
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
                    yield event(chunk.model_dump())
            elif with_usage:
                yield event(replies.last_chunk(item).model_dump())
    except ForgeError as error:
        yield event(error_body(error.to_dict(), error.status))
        return
    yield LAST
