"""Live events from the first client on. The library behind them is slow to import, which a server
that nobody follows need not wait for."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any

from starlette.types import Receive, Scope, Send

from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.web.api.model_proxy import ModelServer

if TYPE_CHECKING:
    from forgellm.web.events import LiveEvents


class EventsOnDemand:
    """An ASGI application, to be mounted at `/socket.io`."""

    def __init__(
        self, workspace: Workspace, settings: GuardSettings, model_server: ModelServer
    ) -> None:
        self._arguments = workspace, settings, model_server
        self._events: LiveEvents | None = None
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = self._events or await self._begin()
        await events.app(scope, receive, send)

    def emit_job(self, job: dict[str, Any]) -> None:
        """Tell every client of a job. From any thread and at any rate."""
        if self._events is not None:
            self._events.emit_job(job)

    async def close(self) -> None:
        if self._events is not None:
            await self._events.close()

    async def _begin(self) -> LiveEvents:
        async with self._lock:
            if self._events is None:
                module = await asyncio.to_thread(import_module, "forgellm.web.events")
                events: LiveEvents = module.LiveEvents(*self._arguments)
                events.start()
                self._events = events
            return self._events
