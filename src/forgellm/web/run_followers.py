"""Which client follows which run, and telling them what is new in it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from forgellm.errors import InvalidRequest, RunNotFound
from forgellm.paths import Workspace
from forgellm.runs.store import active_run, find_run, latest_run
from forgellm.schema.events import EvaluationUpdate, RunEvent, SubscribeRequest
from forgellm.web.outbox import Outbox
from forgellm.web.run_feed import RunFeed

_MAX_RUNS_PER_CLIENT = 16
_TICKS_PER_LOOK_AROUND = 10


class RunFollowers:
    """Belongs to one event loop; files are read in threads, and only while someone listens."""

    def __init__(self, workspace: Workspace, outbox: Outbox) -> None:
        self._workspace = workspace
        self._outbox = outbox
        self._feeds: dict[str, RunFeed] = {}
        self._chosen: dict[str, set[str]] = {}  # client -> the runs it named
        self._undecided: set[str] = set()  # clients of whatever run is the current one
        self._current: str | None = None
        self._num_ticks = 0
        self._lock = asyncio.Lock()  # a client joins between two ticks, so it misses nothing

    async def join(self, sid: str, wanted: SubscribeRequest) -> str | None:
        """The run that `sid` follows from now on; it has been sent the run's latest event.

        None if there is no run yet; the first one will be followed. Raises RunNotFound,
        InvalidRequest.
        """
        async with self._lock:
            if wanted.training_id is None:
                await self._look_around()
                self._undecided.add(sid)
                training_id = self._current
            else:
                training_id = await self._choose(sid, wanted.training_id)
            if training_id is not None:
                await self._send_snapshot(sid, self._feeds[training_id], wanted.since_seq)
            return training_id

    def leave(self, sid: str, training_id: str | None = None) -> None:
        """Follow one run, or any run, no longer."""
        if training_id is None:
            self._undecided.discard(sid)
            self._chosen.pop(sid, None)
        else:
            self._chosen.get(sid, set()).discard(training_id)

    async def tick(self) -> None:
        """Send what is new to those who follow it."""
        async with self._lock:
            if self._undecided and self._num_ticks % _TICKS_PER_LOOK_AROUND == 0:
                await self._look_around()
            self._num_ticks += 1
            followed = {run for runs in self._chosen.values() for run in runs}
            if self._undecided and self._current:
                followed.add(self._current)
            self._feeds = {run: feed for run, feed in self._feeds.items() if run in followed}
            for event in await asyncio.to_thread(self._poll):
                replaces = not isinstance(event, EvaluationUpdate)
                await self._send(self._followers(event.training_id), event, replaces=replaces)

    async def _choose(self, sid: str, name: str) -> str:
        runs = self._chosen.setdefault(sid, set())
        if len(runs) >= _MAX_RUNS_PER_CLIENT:
            raise InvalidRequest(
                "This client follows too many runs", suggestion="Unsubscribe from some first."
            )
        training_id = await asyncio.to_thread(self._open, name)
        runs.add(training_id)
        return training_id

    async def _look_around(self) -> None:
        """Where another run has become the current one, show it to who has named none."""
        before = self._current
        await asyncio.to_thread(self._find_current)
        if self._current is not None and self._current != before:
            await self._send(list(self._undecided), self._feeds[self._current].latest)

    async def _send_snapshot(self, sid: str, feed: RunFeed, since_seq: int | None) -> None:
        if since_seq is not None:
            for event in await asyncio.to_thread(feed.missed, since_seq):
                await self._send([sid], event, replaces=False)
        await self._send([sid], feed.latest)

    async def _send(self, sids: list[str], event: RunEvent, *, replaces: bool = True) -> None:
        """`replaces`: it may take the place of an earlier one that still waits."""
        data = event.model_dump(mode="json")
        key = (event.name, event.training_id, None if replaces else event.seq)
        await self._outbox.offer(sids, event.name, data, key)

    def _followers(self, training_id: str) -> list[str]:
        undecided = self._undecided if training_id == self._current else set()
        return list(undecided | {sid for sid, runs in self._chosen.items() if training_id in runs})

    def _find_current(self) -> None:
        """The run that trains; while none does, the one known already, else the latest."""
        run = active_run(self._workspace)
        if run is None and self._current in self._feeds:
            return
        run = run or latest_run(self._workspace)
        self._current = None
        if run is not None:
            with suppress(RunNotFound):  # its folder went away between the two looks
                self._current = self._open(run.name)

    def _open(self, name: str) -> str:
        """Have a feed of the run of that name, id or path. Raises RunNotFound."""
        if name not in self._feeds:
            run = find_run(self._workspace, name)
            name = run.record().training_id
            if name not in self._feeds:
                self._feeds[name] = RunFeed(run)
        return name

    def _poll(self) -> list[RunEvent]:
        events: list[RunEvent] = []
        for training_id, feed in list(self._feeds.items()):
            try:
                events += feed.poll()
            except RunNotFound:
                del self._feeds[training_id]
        return events
