"""A real Socket.IO client that keeps what it hears."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import socketio

from serving import PATIENCE_SECONDS


class Listener:
    def __init__(self, **options: Any) -> None:
        self.client = socketio.AsyncClient(
            reconnection_delay=0.05, reconnection_delay_max=0.2, **options
        )
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.client.on("*", self._hear)

    async def _hear(self, name: str, data: dict[str, Any]) -> None:
        self.heard.append((name, data))

    def all_of(self, name: str) -> list[dict[str, Any]]:
        return [data for heard, data in self.heard if heard == name]

    def seqs(self) -> list[int]:
        return [data["seq"] for data in self.all_of("training_update")]

    async def subscribe(self, **fields: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await self.client.call(
            "subscribe_training", fields, timeout=PATIENCE_SECONDS
        )
        return answer

    async def first(self, name: str) -> dict[str, Any]:
        await async_eventually(lambda: self.all_of(name))
        return self.all_of(name)[0]

    async def __aenter__(self) -> Listener:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.disconnect()


async def listening(url: str, **options: Any) -> Listener:
    listener = Listener()
    await listener.client.connect(url, wait_timeout=PATIENCE_SECONDS, **options)
    return listener


async def async_eventually(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)
