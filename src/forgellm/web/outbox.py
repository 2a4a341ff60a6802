"""What waits for each Socket.IO client. A client that does not read costs a bounded amount.

Engine.IO keeps a queue without a limit for every client. Only a few packets at a time are put into
it; what is newer waits here, where a later event takes the place of an earlier one of its kind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterable
from typing import Any

import socketio

MAX_QUEUED_PACKETS = 8
MAX_PENDING_EVENTS = 1000
# Answers and refusals bypass the outbox; a client that collects this many reads nothing.
MAX_UNREAD_PACKETS = 200

_PAUSE_SECONDS = 0.005
_BLOCKED_PAUSE_SECONDS = 0.1
_log = logging.getLogger(__name__)

Pending = dict[Hashable, tuple[str, Any]]


class Outbox:
    """Belongs to one event loop, on which `run` must be running."""

    def __init__(self, server: socketio.AsyncServer) -> None:
        self._server = server
        self._pending: dict[str, Pending] = {}
        self._is_waiting = asyncio.Event()

    @property
    def clients(self) -> list[str]:
        return list(self._pending)

    def open(self, sid: str) -> None:
        self._pending[sid] = {}

    def close(self, sid: str) -> None:
        self._pending.pop(sid, None)

    async def offer(self, sids: Iterable[str], event: str, data: Any, key: Hashable) -> None:
        """Send at once to the clients that keep up, else later; a newer offer of `key` replaces it.

        What goes to many at once is made into a packet once.
        """
        at_once = []
        for sid in sids:
            pending = self._pending.get(sid)
            if pending is None:
                continue
            if not pending and self.num_unread(sid) < MAX_QUEUED_PACKETS:
                at_once.append(sid)
                continue
            pending.pop(key, None)  # the newer one goes to the end, so that order is kept
            pending[key] = (event, data)
            await self._send_what_fits(sid, pending)
            if pending:
                self._is_waiting.set()
        if at_once:
            await self._server.emit(event, data, to=at_once)

    async def run(self) -> None:
        """Send what waits as its clients read; part with those that never do."""
        while True:
            await self._is_waiting.wait()
            self._is_waiting.clear()
            while waiting := [(sid, p) for sid, p in self._pending.items() if p]:
                sent = [await self._send_what_fits(sid, pending) for sid, pending in waiting]
                await asyncio.sleep(_PAUSE_SECONDS if any(sent) else _BLOCKED_PAUSE_SECONDS)

    async def part_with_stuck(self) -> None:
        """Disconnect who has more waiting than a client that reads could ever have."""
        for sid, pending in list(self._pending.items()):
            if len(pending) > MAX_PENDING_EVENTS:
                await self._disconnect(self._engine_id(sid))
        for engine_id, socket in list(self._server.eio.sockets.items()):
            if socket.queue.qsize() > MAX_UNREAD_PACKETS:
                await self._disconnect(engine_id)

    def num_unread(self, sid: str) -> int:
        """Packets in the client's own queue."""
        socket = self._server.eio.sockets.get(self._engine_id(sid))
        return socket.queue.qsize() if socket else 0

    async def _send_what_fits(self, sid: str, pending: Pending) -> int:
        num_sent = 0
        while pending and self.num_unread(sid) < MAX_QUEUED_PACKETS:
            event, data = pending.pop(next(iter(pending)))
            await self._server.emit(event, data, to=sid)
            num_sent += 1
        return num_sent

    def _engine_id(self, sid: str) -> str | None:
        engine_id: str | None = self._server.manager.eio_sid_from_sid(sid, "/")
        return engine_id

    async def _disconnect(self, engine_id: str | None) -> None:
        """Not `server.disconnect`: that waits until the client has read everything."""
        socket = self._server.eio.sockets.get(engine_id)
        if socket is None:
            return
        _log.warning("A Socket.IO client that does not read was disconnected")
        await socket.close(wait=False, abort=True, reason=self._server.reason.TRANSPORT_ERROR)
        while not socket.queue.empty():
            socket.queue.get_nowait()
        socket.queue.put_nowait(None)  # ends the task that writes to this client
