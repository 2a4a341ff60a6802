"""The one thread that computes with a model.

One loop that serves all requests token by token is what lets them share each pass through the
weights, and MLX's streams belong to threads. Everything that touches an array runs here. Where
several models are loaded, their threads compute in turns: each uses all cores, MLX is not made for
two at once, and on Metal that can end the process.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

_END_SECONDS = 30.0


class Steps(Protocol):
    """Work that goes on between orders, a step at a time. `step` must not raise."""

    @property
    def is_idle(self) -> bool: ...

    def step(self) -> None: ...

    def close(self) -> None: ...


State = TypeVar("State", bound=Steps)
Result = TypeVar("Result")
OnEnd = Callable[[], None]
_Inbox = SimpleQueue[Callable[[State], None] | None]


class _Turns:
    """Lets one thread in at a time. Two that come again and again alternate."""

    def __init__(self) -> None:
        self._door = threading.Lock()  # held by the next to go in: who was in waits behind it
        self._inside = threading.Lock()
        self.owner: int | None = None

    def __enter__(self) -> None:
        with self._door:
            self._inside.acquire()
        self.owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self.owner = None
        self._inside.release()


_turns = _Turns()


class Worker(Generic[State]):
    """Makes a state in a thread of its own and works on it until this object is gone.

    An order must not hold whoever owns this object: the thread would then never end.
    """

    def __init__(self, make_state: Callable[[], State], name: str, on_end: OnEnd) -> None:
        """`name` is the thread's; `on_end` is the last that it does, when the state is gone.

        Raises what `make_state` raises.
        """
        self._inbox: _Inbox[State] = SimpleQueue()
        made: Future[None] = Future()
        thread = threading.Thread(
            target=_run, args=(self._inbox, make_state, made, on_end), daemon=True, name=name
        )
        thread.start()
        weakref.finalize(self, _end, self._inbox, thread)
        made.result()

    def send(self, order: Callable[[State], None]) -> None:
        """Have `order` done before the next step. It must not raise."""
        self._inbox.put(order)

    def call(self, function: Callable[[State], Result]) -> Result:
        """What `function` returns, or raises, in the worker's thread."""
        answer: Future[Result] = Future()

        def order(state: State) -> None:
            try:
                answer.set_result(function(state))
            except Exception as error:
                answer.set_exception(error)

        self.send(order)
        return answer.result()


def _run(
    inbox: _Inbox[State], make_state: Callable[[], State], made: Future[None], on_end: OnEnd
) -> None:
    try:
        _work(inbox, make_state, made)
    finally:
        with _turns:
            gc.collect()
            on_end()


def _work(inbox: _Inbox[State], make_state: Callable[[], State], made: Future[None]) -> None:
    try:
        with _turns:
            state = make_state()
    except BaseException as error:  # whoever made this waits
        made.set_exception(error)
        return
    made.set_result(None)
    while _follow_orders(inbox, state):
        with _turns:
            state.step()
    with _turns:
        state.close()


def _follow_orders(inbox: _Inbox[State], state: State) -> bool:
    """Do all that waits, and wait where there is nothing else to do; false at the end."""
    while True:
        try:
            order = inbox.get(block=state.is_idle)
        except Empty:
            return True
        if order is None:
            return False
        with _turns:
            order(state)
        del order  # it may hold results, which must not live until the next order


def _end(inbox: _Inbox[State], thread: threading.Thread) -> None:
    """Wait until the memory is free: whoever gave up a model may be about to load the next."""
    inbox.put(None)
    # Called where the last reference goes, which may be a garbage collection in any thread.
    if thread is not threading.current_thread() and _turns.owner != threading.get_ident():
        thread.join(_END_SECONDS)
