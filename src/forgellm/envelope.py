"""How every reply of both servers leaves: JSON through orjson, and each failure as the spec's envelope."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from forgellm.errors import ForgeError, InvalidRequest
from forgellm.schema.failure import Failure
from forgellm.schema.recipe import name_problems

_RETRY_AFTER_SECONDS = "5"
_CLIENT_GONE = 499
_HTTP_REFUSALS = {
    404: ("NOT_FOUND", "There is no such route"),
    405: ("METHOD_NOT_ALLOWED", "This route does not take this method"),
}
_DOCUMENTED: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "The request cannot work; `details` names the fields"},
    404: {"model": Failure, "description": "What the request names is not here"},
    409: {"model": Failure, "description": "Not possible in the present state"},
    "4XX": {"model": Failure, "description": "Refused before it was read: host, origin, size"},
    500: {"model": Failure, "description": "A failure inside ForgeLLM"},
    503: {"model": Failure, "description": "Try again after `Retry-After` seconds"},
}


class ForgeJSONResponse(JSONResponse):
    """JSON in which numbers that are not finite are null."""

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class JsonRoute(APIRoute):
    """A route whose body must be JSON as the standard has it.

    Python's own parser lets through NaN, infinity and lone surrogates, which fail much later.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        return orjson.loads(await self.body())


def install(app: FastAPI) -> None:
    """Make every failure of `app` leave as the envelope, and say so in its OpenAPI document.

    To be called before routes are added.
    """
    app.router.responses = {**_DOCUMENTED, **app.router.responses}
    app.add_exception_handler(ForgeError, _on_forge_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


def error_reply(error: ForgeError) -> Response:
    headers = {"retry-after": _RETRY_AFTER_SECONDS} if error.status == 503 else None
    return ForgeJSONResponse(error.to_dict(), status_code=error.status, headers=headers)


class ClosingStream(StreamingResponse):
    """A streamed reply that closes its source when it ends, also when the client goes away."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        super().__init__(content, status_code, headers, media_type)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()


async def unless_gone(request: Request, reply: Coroutine[Any, Any, Response]) -> Response:
    """`reply`, cancelled when the client hangs up before it is there.

    The request's body must have been read: what comes next is the end of the connection.
    """
    work = asyncio.create_task(reply)
    hang_up = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, hang_up}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else Response(status_code=_CLIENT_GONE)
    finally:
        work.cancel()
        hang_up.cancel()


async def _on_forge_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ForgeError)
    return error_reply(error)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_reply(_invalid_request(error))


def _invalid_request(error: RequestValidationError) -> InvalidRequest:
    findings = error.errors()
    if any(item["type"] == "json_invalid" for item in findings):
        return InvalidRequest(
            "The body is not valid JSON", details={"position": findings[0]["loc"][-1]}
        )
    if any(tuple(item["loc"]) == ("body",) for item in findings):
        return InvalidRequest(
            "The body must be a JSON object",
            suggestion="Send an object with the header Content-Type: application/json.",
        )
    # The first part of a place says body or query, which the user need not know.
    problems = name_problems({**item, "loc": item["loc"][1:]} for item in findings)
    text = "; ".join(f"{problem['field']}: {problem['message']}" for problem in problems)
    return InvalidRequest(text, details={"problems": problems})


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the router refuses: an unknown route, a wrong method, a body it cannot read."""
    assert isinstance(error, HTTPException)
    code, message = _HTTP_REFUSALS.get(error.status_code, ("INVALID_REQUEST", error.detail))
    headers = error.headers
    if error.status_code == 405 and (methods := _documented_methods(request)):
        headers = {"allow": ", ".join(methods)}
    return http_error_reply(error.status_code, code, message, headers=headers)


def _documented_methods(request: Request) -> list[str]:
    """Every method of the request's path; the router itself names those of its first match."""
    return sorted(
        method.upper()
        for path, operations in request.app.openapi()["paths"].items()
        if compile_path(path)[0].fullmatch(request.scope["path"])
        for method in operations
    )


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    # The server logs the traceback; the client gets none of it.
    return http_error_reply(500, "INTERNAL_ERROR", "Something went wrong inside ForgeLLM")


def http_error_reply(
    status: int,
    code: str,
    message: str,
    *,
    suggestion: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The envelope of a failure that only HTTP knows, such as a wrong method."""
    content = {
        "success": False,
        "error": message,
        "error_code": code,
        "details": {},
        "suggestion": suggestion,
    }
    return ForgeJSONResponse(content, status_code=status, headers=headers)
