"""The requests that wait or are being answered, by the ids that they are cancelled by."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from threading import Event
from typing import TypeVar

from forgellm.errors import Conflict, NotFound

Result = TypeVar("Result")


class Cancelled(Exception):
    """The request was cancelled while it waited."""


class Ticket:
    """Of one request. `waiting` is what ends when it is cancelled."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.waiting: asyncio.Timeout | None = None
        self._cancelled = Event()

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """To be called in the event loop."""
        self._cancelled.set()
        if self.waiting is not None:
            self.waiting.reschedule(asyncio.get_running_loop().time())

    async def unless_cancelled(self, begin: Callable[[], Awaitable[Result]]) -> Result:
        """What `begin` gives. Raises Cancelled, then or before."""
        if self.is_cancelled():
            raise Cancelled
        try:
            async with asyncio.timeout(None) as self.waiting:
                return await begin()
        except TimeoutError:
            if not self.is_cancelled():
                raise
            raise Cancelled from None
        finally:
            self.waiting = None


class Tickets:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._issued: dict[str, Ticket] = {}

    def __len__(self) -> int:
        return len(self._issued)

    def require_new(self, request_id: str) -> None:
        """Raises Conflict."""
        if request_id in self._issued:
            raise Conflict("A request with this request_id is running or waiting already")

    def issue(self, request_id: str) -> Ticket:
        """Raises Conflict."""
        self.require_new(request_id)
        ticket = self._issued[request_id] = Ticket(request_id)
        return ticket

    def rename(self, ticket: Ticket, request_id: str) -> None:
        """Unless another request has that id."""
        if request_id not in self._issued:
            self.take_back(ticket)
            ticket.request_id = request_id
            self._issued[request_id] = ticket

    def take_back(self, ticket: Ticket) -> None:
        del self._issued[ticket.request_id]

    def cancel(self, request_id: str | None) -> list[str]:
        """Cancel one request, or all; returns the ids of those cancelled. Raises NotFound."""
        if request_id is not None and request_id not in self._issued:
            raise NotFound(
                "No such request is running or waiting",
                suggestion="It may have ended by itself.",
            )
        cancelled = list(self._issued) if request_id is None else [request_id]
        for name in cancelled:
            self._issued[name].cancel()
        return cancelled


def new_request_id(prefix: str = "gen-") -> str:
    return prefix + secrets.token_hex(12)
