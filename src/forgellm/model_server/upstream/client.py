"""Requests to the one address that answers, within bounds of size and time. No redirect is followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from forgellm import __version__
from forgellm.endpoint import plain_address
from forgellm.errors import ModelServerUnavailable, Unavailable
from forgellm.model_server.upstream.events import not_compatible, read_events
from forgellm.model_server.upstream.failures import failure_in, refusal

if TYPE_CHECKING:
    import httpx2

_MAX_AT_ONCE = 512
_MAX_LISTED = 1000
_MAX_NAME = 400


@dataclass(frozen=True)
class Limits:
    """What is waited for and taken.

    Attributes:
        reply_seconds: without a byte of an answer; it waits for its turn, and for the model.
    """

    connect_seconds: float = 5.0
    list_seconds: float = 5.0
    reply_seconds: float = 600.0
    max_event_bytes: int = 1 << 20
    max_reply_bytes: int = 64 << 20
    max_stream_bytes: int = 256 << 20


@dataclass(frozen=True)
class Listed:
    """A model of the upstream. `context_length` is in tokens, where it says so."""

    id: str
    created: int
    owned_by: str
    context_length: int | None


class UpstreamClient:
    """Belongs to one event loop."""

    def __init__(self, url: str, key: str | None = None, limits: Limits = Limits()) -> None:
        """`url` is that above `/chat/completions`; without a path, `/v1` is added.

        Raises InvalidRequest.
        """
        address = plain_address(url, "--upstream")
        self._url = address if urlsplit(address).path else f"{address}/v1"
        self._key = key
        self._limits = limits

    @cached_property
    def _client(self) -> httpx2.AsyncClient:
        import httpx2

        headers = {"user-agent": f"forgellm/{__version__}", "accept-encoding": "identity"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        limits = self._limits
        return httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(
                limits.reply_seconds, connect=limits.connect_seconds, pool=limits.connect_seconds
            ),
            # Idle connections are let go before a server would close them under a request.
            limits=httpx2.Limits(max_connections=_MAX_AT_ONCE, keepalive_expiry=2.0),
            follow_redirects=False,  # they could lead, and carry the key, anywhere
            trust_env=False,  # as could a proxy
            # A balancer's cookie would tie all who ask to one replica.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            verify=self._url.startswith("https:"),
        )

    async def models(self) -> list[Listed]:
        """Raises ModelServerUnavailable, Unavailable."""
        try:
            async with asyncio.timeout(self._limits.list_seconds):
                body = await self._whole("GET", "models", b"", "")
        except TimeoutError:
            raise _silent(self._limits.list_seconds) from None
        found = _object(body).get("data")
        if not isinstance(found, list):
            raise not_compatible()
        return [model for item in found[:_MAX_LISTED] if (model := _listed(item)) is not None]

    async def ask(self, route: str, question: dict[str, Any]) -> bytes:
        """The whole reply, a JSON object. Raises ForgeError."""
        body = await self._whole("POST", route, orjson.dumps(question), str(question["model"]))
        _object(body)
        return body

    async def stream(self, route: str, question: dict[str, Any]) -> EventStream:
        """The reply in events, once it has begun. Raises ForgeError."""
        reply = await self._begin("POST", route, orjson.dumps(question), str(question["model"]))
        if not reply.headers.get("content-type", "").startswith("text/event-stream"):
            await reply.aclose()
            raise not_compatible()
        return EventStream(reply, self._limits, self._key)

    async def aclose(self) -> None:
        if "_client" in self.__dict__:
            await self._client.aclose()

    async def _whole(self, method: str, route: str, body: bytes, model: str) -> bytes:
        reply = await self._begin(method, route, body, model)
        try:
            return await self._bounded(reply)
        finally:
            await reply.aclose()

    async def _begin(self, method: str, route: str, body: bytes, model: str) -> httpx2.Response:
        """A reply with status 200, of which only the head has been read."""
        request = self._client.build_request(
            method,
            f"{self._url}/{route}",
            content=body,
            headers={"content-type": "application/json"} if body else {},
        )
        with _as_our_errors(self._limits):
            reply = await self._client.send(request, stream=True)
        if reply.status_code == 200:
            return reply
        try:
            said = await self._bounded(reply)
        finally:
            await reply.aclose()
        raise refusal(reply.status_code, said, model, self._key)

    async def _bounded(self, reply: httpx2.Response) -> bytes:
        found = bytearray()
        with _as_our_errors(self._limits):
            async for piece in reply.aiter_raw():
                found += piece
                if len(found) > self._limits.max_reply_bytes:
                    raise ModelServerUnavailable(
                        "The upstream's reply is larger than is taken",
                        suggestion="Ask for a shorter one.",
                    )
        return bytes(found)


class EventStream:
    """The JSON objects of a stream. Closing it ends the answer there too."""

    def __init__(self, reply: httpx2.Response, limits: Limits, key: str | None) -> None:
        self._reply, self._limits, self._key = reply, limits, key
        self._events = self._read()

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self._events

    async def aclose(self) -> None:
        await self._reply.aclose()

    async def _read(self) -> AsyncIterator[dict[str, Any]]:
        """Raises ForgeError for an event that is one, and where the stream breaks off."""
        events = read_events(
            self._reply.aiter_raw(),
            max_event_bytes=self._limits.max_event_bytes,
            max_bytes=self._limits.max_stream_bytes,
        )
        with _as_our_errors(self._limits):
            async for event in events:
                if error := failure_in(event, self._key):
                    raise error
                yield event


@contextmanager
def _as_our_errors(limits: Limits) -> Iterator[None]:
    import httpx2

    try:
        yield
    except httpx2.PoolTimeout:
        raise Unavailable(
            f"{_MAX_AT_ONCE} answers are being made already",
            suggestion="Try again in a few seconds.",
        ) from None
    except httpx2.ReadTimeout:
        raise _silent(limits.reply_seconds) from None
    except (httpx2.HTTPError, httpx2.StreamError):
        raise ModelServerUnavailable(
            "The upstream does not answer",
            suggestion="Check that it runs, and the address after --upstream.",
        ) from None


def _silent(seconds: float) -> ModelServerUnavailable:
    return ModelServerUnavailable(
        f"The upstream said nothing for {seconds:g} seconds",
        suggestion="Check that it runs, and how busy it is.",
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise not_compatible()
    return found


def _listed(item: Any) -> Listed | None:
    """None for what has no usable name."""
    if not isinstance(item, dict):
        return None
    name, created, owner = item.get("id"), item.get("created"), item.get("owned_by")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        return None
    length = item.get("max_model_len")  # vLLM's; others do not say
    return Listed(
        id=name,
        created=created if isinstance(created, int) else 0,
        owned_by=owner[:_MAX_NAME] if isinstance(owner, str) else "upstream",
        context_length=length if isinstance(length, int) and length > 0 else None,
    )
