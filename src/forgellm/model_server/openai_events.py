"""How a stream below `/v1` is written: server-sent events, the last of them `[DONE]`."""

from __future__ import annotations

import orjson

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
LAST = b"data: [DONE]\n\n"


def event(content: object) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
