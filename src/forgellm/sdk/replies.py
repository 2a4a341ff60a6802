"""Replies of a server as dicts, and its error envelope as the exception it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from forgellm import errors
from forgellm.errors import ForgeError

Reply = dict[str, Any]

_BY_STATUS: dict[int, type[ForgeError]] = {
    400: errors.InvalidRequest,
    404: errors.NotFound,
    409: errors.Conflict,
    503: errors.Unavailable,
}


def error_of(reply: Reply, status: int = 500) -> ForgeError:
    """The exception that an error envelope stands for.

    A code that `errors.py` does not know becomes the class of its HTTP status, with that code.
    """
    code = str(reply.get("error_code") or ForgeError.code)
    kind = _classes().get(code)
    if kind is None:
        base = _BY_STATUS.get(status, ForgeError)
        kind = type(base.__name__, (base,), {"code": code, "status": status})
    error = kind.__new__(kind)
    details = reply.get("details")
    ForgeError.__init__(
        error,
        str(reply.get("error") or "The request failed"),
        suggestion=str(reply.get("suggestion") or ""),
        details=details if isinstance(details, dict) else None,
    )
    return error


def no_answer(base_url: str, problem: str) -> ForgeError:
    return errors.Unavailable(
        f"ForgeLLM does not answer at {base_url}: {problem}",
        suggestion="Start it with: forgellm start",
    )


def _classes() -> dict[str, type[ForgeError]]:
    return {kind.code: kind for kind in _tree(ForgeError)}


def _tree(base: type[ForgeError]) -> Iterator[type[ForgeError]]:
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from _tree(kind)
