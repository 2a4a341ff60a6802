"""`/api/model/*`: passed on to the model server, streams included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from forgellm.envelope import ClosingStream, JsonRoute, unless_gone
from forgellm.errors import ModelServerUnavailable
from forgellm.schema.answers import (
    GENERATE_RESPONSES,
    CancelReply,
    GenerateReply,
    LoadReply,
    ModelStatusReply,
    UnloadReply,
)
from forgellm.schema.generation import CancelRequest, GenerateRequest, LoadRequest, UnloadRequest

if TYPE_CHECKING:
    import httpx2

_CONNECT_SECONDS = 2.0
_PASSED_REQUEST_HEADERS = ("content-type", "accept")
_PASSED_REPLY_HEADERS = (
    "content-type",
    "cache-control",
    "retry-after",
    "x-accel-buffering",
    "x-request-id",
    "allow",
)


class ModelServer:
    """The other server, as seen from here."""

    def __init__(self, url: str) -> None:
        self._url = url

    @cached_property
    def _client(self) -> httpx2.AsyncClient:
        import httpx2  # not at the top: the web server should be up before it is needed

        return httpx2.AsyncClient(
            base_url=self._url,
            # An answer may take long to begin: it waits for the model, and for its turn.
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=None),
            trust_env=False,  # a proxy for the internet has no business between the two
            # Without TLS there is no certificate, and reading those of the system takes a while.
            verify=self._url.startswith("https:"),
        )

    async def is_running(self) -> bool:
        import httpx2

        try:
            reply = await self._client.get("/api/health", timeout=1.0)
        except httpx2.HTTPError:
            return False
        return bool(reply.status_code == 200)

    async def status(self) -> dict[str, Any] | None:
        """What it holds, or None while it does not answer."""
        import httpx2

        try:
            reply = await self._client.get("/api/model/status", timeout=1.0)
            return dict(reply.json()) if reply.status_code == 200 else None
        except (httpx2.HTTPError, ValueError):
            return None

    async def forward(self, request: Request) -> Response:
        """The model server's reply; a stream passes piece by piece, as it comes.

        Raises ModelServerUnavailable.
        """
        import httpx2

        outgoing = self._client.build_request(
            request.method,
            request.scope["path"],
            content=await request.body(),
            headers={
                # Bytes: a value that is not ASCII is for the model server to judge.
                name: request.headers[name].encode("latin-1")
                for name in _PASSED_REQUEST_HEADERS
                if name in request.headers
            },
        )
        try:
            reply = await self._client.send(outgoing, stream=True)
            if reply.headers.get("content-type", "").startswith("application/json"):
                await reply.aread()
        except httpx2.HTTPError:
            raise ModelServerUnavailable("The model server does not answer") from None
        headers = {
            name: reply.headers[name] for name in _PASSED_REPLY_HEADERS if name in reply.headers
        }
        if reply.is_stream_consumed:
            return Response(reply.content, reply.status_code, headers)
        return ClosingStream(
            _pieces(reply), reply.aclose, status_code=reply.status_code, headers=headers
        )

    async def aclose(self) -> None:
        if "_client" in self.__dict__:
            await self._client.aclose()


async def _pieces(reply: httpx2.Response) -> AsyncIterator[bytes]:
    import httpx2

    try:
        async for piece in reply.aiter_raw():
            yield piece
    except httpx2.HTTPError:
        error = ModelServerUnavailable("The model server stopped while it answered")
        item = orjson.dumps({"type": "error", **error.to_dict()})
        is_ndjson = "ndjson" in reply.headers.get("content-type", "")
        yield b"\n" + item + b"\n" if is_ndjson else b"\n\ndata: " + item + b"\n\n"


def make_router(model_server: ModelServer) -> APIRouter:
    """Bodies are checked here as the model server checks them, and passed on as they came."""
    router = APIRouter(prefix="/api/model", route_class=JsonRoute)

    async def pass_on(request: Request) -> Response:
        await request.body()
        return await unless_gone(request, model_server.forward(request))

    @router.get("/status", response_model=ModelStatusReply)
    async def status(request: Request) -> Response:
        """What the model server has loaded or is loading."""
        return await pass_on(request)

    @router.post("/load", response_model=LoadReply)
    async def load(request: Request, body: LoadRequest) -> Response:
        """Start loading a model; generating waits until it is there."""
        return await pass_on(request)

    @router.post("/generate", response_model=GenerateReply, responses=GENERATE_RESPONSES)
    async def generate(request: Request, body: GenerateRequest) -> Response:
        """Answer a prompt; with `streaming` piece by piece, as the model server makes it."""
        return await pass_on(request)

    @router.post("/cancel", response_model=CancelReply)
    async def cancel(request: Request, body: CancelRequest | None = None) -> Response:
        """End an answer that runs or waits."""
        return await pass_on(request)

    @router.post("/unload", response_model=UnloadReply)
    async def unload(request: Request, body: UnloadRequest | None = None) -> Response:
        """Free the memory of one model, or without a name of all."""
        return await pass_on(request)

    return router
