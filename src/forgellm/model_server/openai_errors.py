"""Below `/v1`, every failure leaves in OpenAI's shape instead of the envelope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from forgellm.envelope import ForgeJSONResponse
from forgellm.errors import ForgeError, ModelNotFound
from forgellm.schema.openai import OpenAIError, OpenAIErrorReply

PREFIX = "/v1"

_Handler = Callable[[Request, Any], Awaitable[Response]]


def install(app: FastAPI) -> None:
    """To be called after `envelope.install`, whose replies are translated."""
    for kind in (ForgeError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _translated(app.exception_handlers[kind]))


def error_body(envelope: dict[str, Any], status: int) -> dict[str, Any]:
    """The envelope's code, message, suggestion and first wrong field, as OpenAI names them."""
    problems = envelope["details"].get("problems")
    param = problems[0]["field"] if problems else None
    if envelope["error_code"] == ModelNotFound.code:
        param = "model"
    error = OpenAIError(
        message=". ".join(part.rstrip(".") for part in (envelope["error"], envelope["suggestion"]) if part),
        type="server_error" if status >= 500 else "invalid_request_error",
        param=param,
        code=envelope["error_code"].lower(),
    )  # fmt: skip
    return OpenAIErrorReply(error=error).model_dump()


def _translated(handler: Callable[..., Any]) -> _Handler:
    async def handle(request: Request, error: Any) -> Response:
        reply: Response = await handler(request, error)
        if not request.url.path.startswith(f"{PREFIX}/"):
            return reply
        kept = {name: value for name, value in reply.headers.items() if name in _KEPT_HEADERS}
        body = error_body(orjson.loads(reply.body), reply.status_code)
        return ForgeJSONResponse(body, status_code=reply.status_code, headers=kept)

    return handle


_KEPT_HEADERS = ("retry-after", "allow")
