"""`/api/model/*`: passed on to the model server, streams included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cached_property
from typing import TYPE_CHECKING

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from forgellm.envelope import ClosingStream, unless_gone
from forgellm.errors import ModelServerUnavailable

if TYPE_CHECKING:
    import httpx2

_CONNECT_SECONDS = 2.0
_PASSED_REQUEST_HEADERS = ("content-type", "accept")
_PASSED_REPLY_HEADERS = (
    "content-type",
    "cache-control",
    "retry-after",
    "x-accel-buffering",
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
        )

    async def is_running(self) -> bool:
        import httpx2

        try:
            reply = await self._client.get("/api/health", timeout=1.0)
        except httpx2.HTTPError:
            return False
        return bool(reply.status_code == 200)

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
                name: request.headers[name]
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
    router = APIRouter(prefix="/api/model")

    @router.get("/{action}")
    @router.post("/{action}")
    async def pass_on(request: Request) -> Response:
        """Load, status, generate and unload, as the model server documents them."""
        await request.body()
        return await unless_gone(request, model_server.forward(request))

    return router
