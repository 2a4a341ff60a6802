"""The events of an upstream's stream as JSON objects, within bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

from forgellm.errors import ModelServerUnavailable

_LAST = b"[DONE]"


async def read_events(
    pieces: AsyncIterator[bytes], *, max_event_bytes: int, max_bytes: int
) -> AsyncIterator[dict[str, Any]]:
    """What follows `data:` up to `[DONE]`. Lines of other kinds are passed over.

    Raises ModelServerUnavailable for what is no JSON object, or too large, or breaks off.
    """
    rest, num_bytes = bytearray(), 0
    async for piece in pieces:
        num_bytes += len(piece)
        rest += piece
        lines: list[bytearray] = []
        if b"\n" in piece:
            *lines, rest = rest.split(b"\n")
        if num_bytes > max_bytes or max(map(len, (*lines, rest))) > max_event_bytes:
            raise ModelServerUnavailable(
                "The upstream's answer is larger than is taken",
                suggestion="Ask for a shorter one.",
            )
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == _LAST:
                return
            yield _object_of(data)
    raise ModelServerUnavailable(
        "The upstream stopped while it answered", suggestion="Ask again; its log has the reason."
    )


def _object_of(data: bytearray) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise not_compatible()
    return found


def not_compatible() -> ModelServerUnavailable:
    return ModelServerUnavailable(
        "The upstream's reply is not that of an OpenAI-compatible server",
        suggestion="The address after --upstream usually ends in /v1.",
    )
