"""The upstream behind the routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, TypeVar

from starlette.responses import Response

from forgellm.envelope import ClosingStream
from forgellm.errors import Conflict, ForgeError, InvalidRequest
from forgellm.model_server.backend import Answer
from forgellm.model_server.openai_errors import error_body
from forgellm.model_server.openai_events import HEADERS, LAST, event
from forgellm.model_server.tickets import Cancelled, Ticket, Tickets, new_request_id
from forgellm.model_server.upstream.answers import (
    CHAT,
    TEXT,
    CancelledAnswer,
    UpstreamAnswer,
    question,
)
from forgellm.model_server.upstream.client import EventStream, Listed, UpstreamClient
from forgellm.model_server.upstream.models import Choice, Named
from forgellm.schema.generation import GenerateRequest, LoadRequest
from forgellm.schema.openai import ChatCompletionRequest, CompletionRequest, Model

_LIST_KEPT_SECONDS = 2.0
# Not OpenAI's: sent, and left out from then on where the upstream refuses them by name.
_EXTRAS = ("repetition_penalty", "stream_options")

Result = TypeVar("Result")


class Upstream:
    """A Backend. Belongs to one event loop."""

    def __init__(self, client: UpstreamClient, known: Sequence[Named] = ()) -> None:
        """`known` are models of it whose names here, or whose type, the upstream does not say."""
        self._client = client
        self._choice = Choice(known)
        self._tickets = Tickets()
        self._refused: set[str] = set()
        self._list: list[Listed] | ForgeError = []
        self._listed_at = -_LIST_KEPT_SECONDS
        self._listing = asyncio.Lock()

    async def check(self) -> None:
        await self._models()

    async def load(self, request: LoadRequest) -> None:
        self._choice.load(request, await self._models())

    async def unload(self, model_name: str | None, adapter_path: str | None) -> None:
        self._choice.unload(model_name, adapter_path, await self._models())

    async def status(self) -> dict[str, Any]:
        return self._choice.status(await self._models())

    async def models(self) -> list[Model]:
        return self._choice.in_order(await self._models())

    def cancel(self, request_id: str | None) -> list[str]:
        return self._tickets.cancel(request_id)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def generate(self, request: GenerateRequest, request_id: str) -> Answer:
        listed = await self._models()
        model = self._choice.named(request.model_name, request.adapter_path, listed)
        is_base = model.model_type == "base"
        if request.is_base_model is not None:
            is_base = request.is_base_model
        asked = question(request, model.id, is_base=is_base)
        ticket = self._tickets.issue(request_id)
        try:
            events = await ticket.unless_cancelled(
                lambda: self._without_extras(TEXT if is_base else CHAT, asked)
            )
        except BaseException as error:
            self._tickets.take_back(ticket)
            if isinstance(error, Cancelled):
                return CancelledAnswer()
            raise
        return UpstreamAnswer(
            events,
            ticket,
            lambda: self._tickets.take_back(ticket),
            num_top=request.top_logprobs,
            context_length=next(
                (found.context_length for found in listed if found.id == model.id), None
            ),
        )

    async def complete(self, request: CompletionRequest) -> Response:
        return await self._pass_on(TEXT, request, "cmpl-")

    async def chat(self, request: ChatCompletionRequest) -> Response:
        return await self._pass_on(CHAT, request, "chatcmpl-")

    async def _models(self) -> list[Listed]:
        """Asked for at most once in two seconds. Raises ModelServerUnavailable, Unavailable."""
        async with self._listing:
            if monotonic() - self._listed_at >= _LIST_KEPT_SECONDS:
                try:
                    self._list = await self._client.models()
                except ForgeError as error:
                    self._list = error
                self._listed_at = monotonic()
        if isinstance(self._list, ForgeError):
            raise self._list.with_traceback(None)
        return self._list

    async def _without_extras(self, route: str, asked: dict[str, Any]) -> EventStream:
        while True:
            sent = {name: value for name, value in asked.items() if name not in self._refused}
            try:
                return await self._client.stream(route, sent)
            except InvalidRequest as error:
                named = {name for name in _EXTRAS if name in sent and name in error.message}
                if not named:
                    raise
                self._refused |= named

    async def _pass_on(
        self, route: str, request: CompletionRequest | ChatCompletionRequest, prefix: str
    ) -> Response:
        asked = request.asked()
        ticket = self._tickets.issue(new_request_id(prefix))
        if not request.stream:
            try:
                body = await _unless_cancelled(ticket, lambda: self._client.ask(route, asked))
            finally:
                self._tickets.take_back(ticket)
            return Response(body, media_type="application/json")
        try:
            events = await _unless_cancelled(ticket, lambda: self._client.stream(route, asked))
        except BaseException:
            self._tickets.take_back(ticket)
            raise

        async def close() -> None:
            self._tickets.take_back(ticket)
            await events.aclose()

        return ClosingStream(
            self._passed(events, ticket), close, media_type="text/event-stream", headers=HEADERS
        )

    async def _passed(self, events: EventStream, ticket: Ticket) -> AsyncIterator[bytes]:
        """The chunks as they come. They name the id that the request can be cancelled by."""
        chunks = aiter(events)

        async def following() -> dict[str, Any] | None:
            return await _unless_cancelled(ticket, lambda: anext(chunks, None))

        try:
            while (chunk := await following()) is not None:
                if isinstance(name := chunk.get("id"), str) and name != ticket.request_id:
                    self._tickets.rename(ticket, name)
                yield event(chunk)
        except ForgeError as error:
            yield event(error_body(error.to_dict(), error.status))
            return
        yield LAST


async def _unless_cancelled(ticket: Ticket, begin: Callable[[], Awaitable[Result]]) -> Result:
    """Raises Conflict where it is cancelled: OpenAI's replies have no word for it."""
    try:
        return await ticket.unless_cancelled(begin)
    except Cancelled:
        raise Conflict("The answer was cancelled") from None
