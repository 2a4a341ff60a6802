"""What an upstream says went wrong, in our own words and its own, shortened."""

from __future__ import annotations

from typing import Any

import orjson

from forgellm.errors import (
    Conflict,
    ForgeError,
    InvalidRequest,
    ModelNotFound,
    ModelServerUnavailable,
    Unavailable,
)

KEY_VARIABLE = "FORGELLM_UPSTREAM_KEY"
_MOST_CHARACTERS = 500


def refusal(status: int, body: bytes, model: str, key: str | None) -> ForgeError:
    """The error that a reply with another status than 200 means. `model` is the one asked for."""
    said, param = _words_of(_loaded(body), key)
    if 300 <= status < 400:
        return ModelServerUnavailable(
            f"The upstream answers with a redirect ({status}), which is not followed",
            suggestion="Give the address that it leads to after --upstream.",
        )
    if status in (401, 403):
        return ModelServerUnavailable(
            f"The upstream refuses access{said}",
            suggestion=f"Set {KEY_VARIABLE} to its key or token; another ForgeLLM must also be"
            " started with --allow-host for its own name.",
        )
    if status == 404 and said and model:
        return ModelNotFound(model, [], suggestion="See GET /v1/models for the upstream's.")
    if status == 404:
        return ModelServerUnavailable(
            f"The upstream has no such route{said}",
            suggestion="The address after --upstream usually ends in /v1.",
        )
    if status == 409:
        return Conflict(f"The upstream refused the request{said}")
    if status == 429:
        return Unavailable(f"The upstream is busy{said}", suggestion="Try again in a few seconds.")
    if 400 <= status < 500:
        details = {"problems": [{"field": param, "message": said[2:]}]} if param else {}
        return InvalidRequest(f"The upstream refused the request{said}", details=details)
    return ModelServerUnavailable(
        f"The upstream failed with status {status}{said}",
        suggestion="Its log has the reason.",
    )


def failure_in(event: dict[str, Any], key: str | None) -> ForgeError | None:
    """The error that an event of a stream is, if it is one."""
    if event.get("error") is None:
        return None
    said, _ = _words_of(event, key)
    return ModelServerUnavailable(
        f"The upstream failed while it answered{said}", suggestion="Its log has the reason."
    )


def _loaded(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _words_of(body: dict[str, Any], key: str | None) -> tuple[str, str | None]:
    """A colon and the message, or nothing; and the field that it is about."""
    error = body.get("error", body)
    error = error if isinstance(error, dict) else {"message": error}
    message, param = error.get("message"), error.get("param")
    if not isinstance(message, str) or not message.strip():
        return "", None
    message = " ".join(message.split())
    if key:
        message = message.replace(key, "***")
    if len(message) > _MOST_CHARACTERS:
        message = message[:_MOST_CHARACTERS] + "..."
    return f": {message}", param[:100] if isinstance(param, str) else None
