"""As many requests at once as a model's engine answers, first come, first served, each in a thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Event, Thread
from typing import Generic, TypeVar

from forgellm.errors import ForgeError, ModelNotLoaded, Unavailable
from forgellm.model_server.loading import LoadedModel, detached
from forgellm.model_server.slot import Line, Slot
from forgellm.model_server.tickets import Cancelled, Ticket, Tickets

_log = logging.getLogger(__name__)
MAX_WAITING = 64

Item = TypeVar("Item")
# Makes the items in a thread, from the model and a question: has the request been cancelled?
Work = Callable[[LoadedModel, Callable[[], bool]], Generator[Item]]
# The slot of the model that a request means. Asked whether it may take the place of others, which
# would end the answers that run; None where it may not, and would have to.
Choose = Callable[[bool], Awaitable[Slot | None]]


@dataclass(frozen=True)
class Wanted:
    """The model that a request means.

    Attributes:
        is_latest: whichever was loaded last; another that takes its place meanwhile will do.
    """

    choose: Choose
    is_latest: bool = False


class Turns:
    """Who may use which model. Belongs to one event loop.

    All who come pass a gate, one by one, and then stand in the line of their model, whose first
    waits for it to be loaded and for a place among those who are being answered. Who needs the place
    of other models waits in the gate until all who are past it have their answers.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._num_places = 1  # of the last model that was asked for
        self._num_running = 0
        self._gate = asyncio.Lock()
        self._num_inside = 0  # past the gate, until their answers end
        self._one_left = asyncio.Event()
        self._tickets = Tickets()

    async def start(
        self,
        request_id: str,
        wanted: Wanted,
        prepare: Callable[[LoadedModel], Work[Item]],
        if_cancelled: Sequence[Item],
    ) -> AnswerStream[Item]:
        """The answer, once it is this request's turn, there is a model and it accepts the prompt.

        `prepare` runs in a thread. Whoever is cancelled before that gets the items `if_cancelled`.
        Raises Conflict, Unavailable, ModelNotLoaded and what `wanted.choose` and `prepare` raise.
        """
        self._tickets.require_new(request_id)
        self._require_room()
        ticket = self._tickets.issue(request_id)
        stream = AnswerStream[Item]()

        async def begin() -> None:
            while not await self._begin(ticket, wanted, prepare, stream):
                if not wanted.is_latest:
                    raise ModelNotLoaded("The model was unloaded before it was this one's turn")

        try:
            await ticket.unless_cancelled(begin)
        except BaseException as error:
            self._tickets.take_back(ticket)
            if not isinstance(error, Cancelled):
                raise
            stream.end_with(if_cancelled)
        return stream

    def cancel(self, request_id: str | None) -> list[str]:
        """Cancel one request, or all; returns the ids of those cancelled. Raises NotFound."""
        return self._tickets.cancel(request_id)

    def _require_room(self) -> None:
        """Raises Unavailable when too many wait already."""
        num_waiting = len(self._tickets) - self._num_running
        if num_waiting >= self._max_waiting + max(0, self._num_places - self._num_running):
            raise Unavailable(
                f"{num_waiting} requests wait for the model already",
                suggestion="Try again in a few seconds.",
            )

    async def _begin(
        self,
        ticket: Ticket,
        wanted: Wanted,
        prepare: Callable[[LoadedModel], Work[Item]],
        stream: AnswerStream[Item],
    ) -> bool:
        """Start the answer when it is its turn; false if the model is given up before."""
        slot = await self._pass_gate(wanted.choose)
        try:
            async with slot.line.lock:
                model = await self._model_with_a_place(slot)
                if model is None:
                    self._leave()
                    return False
                work = await asyncio.to_thread(prepare, model)
                stream.start(model, work, ticket, lambda: self._end(ticket, slot.line))
                slot.line.num_running += 1
                self._num_running += 1
                return True
        except BaseException:
            self._leave()
            raise

    async def _pass_gate(self, choose: Choose) -> Slot:
        async with self._gate:
            while True:
                self._one_left.clear()
                slot = await choose(self._num_inside == 0)
                if slot is not None:
                    self._num_inside += 1
                    return slot
                await self._one_left.wait()

    async def _model_with_a_place(self, slot: Slot) -> LoadedModel | None:
        """To be called by the first in line; None if the model is given up. Asks again after each
        wait: the model must not be held here."""
        while (model := await slot.wait_ready()) is not None:
            self._num_places = model.engine.max_concurrent
            slot.line.one_ended.clear()
            if slot.line.num_running < self._num_places:
                return model
            del model
            await slot.line.one_ended.wait()
        return None

    def _leave(self) -> None:
        self._num_inside -= 1
        self._one_left.set()

    def _end(self, ticket: Ticket, line: Line) -> None:
        self._tickets.take_back(ticket)
        self._num_running -= 1
        line.num_running -= 1
        line.one_ended.set()
        self._leave()


class AnswerStream(Generic[Item]):
    """Items as they are made, in a thread; closing it ends the work within a token."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[Item | ForgeError | None] = asyncio.Queue()
        self._closed = Event()
        self._loop = asyncio.get_running_loop()

    def start(
        self, model: LoadedModel, work: Work[Item], ticket: Ticket, on_end: Callable[[], None]
    ) -> None:
        """`on_end` is called in the event loop when the thread has let go of the model."""
        Thread(
            target=self._run, args=(model, work, ticket, on_end), daemon=True, name="answer"
        ).start()

    def end_with(self, items: Sequence[Item]) -> None:
        """Give these items, without a thread."""
        for item in (*items, None):
            self._items.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Raises the ForgeError that ended the answer."""
        try:
            while (item := await self._items.get()) is not None:
                if isinstance(item, ForgeError):
                    raise item
                yield item
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        self._closed.set()

    def _run(
        self, model: LoadedModel, work: Work[Item], ticket: Ticket, on_end: Callable[[], None]
    ) -> None:
        try:
            with model.users:
                self._make_items(model, work, ticket)
        except ForgeError as error:
            self._put(detached(error))
        except Exception:
            _log.exception("an answer failed")
            self._put(ForgeError("The model failed while it answered"))
        finally:
            del model
            self._put(None)
            self._call(on_end)

    def _make_items(self, model: LoadedModel, work: Work[Item], ticket: Ticket) -> None:
        with closing(work(model, ticket.is_cancelled)) as items:
            for item in items:
                if self._closed.is_set():
                    return
                if model.retired.is_set():
                    raise ModelNotLoaded("The model was unloaded while it answered")
                self._put(item)

    def _put(self, item: Item | ForgeError | None) -> None:
        self._call(self._items.put_nowait, item)

    def _call(self, function: Callable[..., None], *args: Item | ForgeError | None) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the server has ended, and with it everyone who waits
            self._closed.set()
