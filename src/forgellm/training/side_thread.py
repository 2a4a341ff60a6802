"""Work beside the training loop that may fail or hang without the run noticing."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections.abc import Callable

MAX_WAITING = 1000
LINGER_SECONDS = 20.0
_log = logging.getLogger(__name__)


class SideThread:
    """Calls what it is given, one after the other, in a thread of its own.

    Nothing here waits: where too much is waiting, the newest is dropped. The first failure is
    logged and the others are not. When the process ends it lingers for what is left, but not long.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(MAX_WAITING)
        self._has_failed = self._has_dropped = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        atexit.register(self._thread.join, LINGER_SECONDS)

    def do(self, call: Callable[[], None]) -> None:
        """Line `call` up; its errors are caught."""
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            if not self._has_dropped:
                self._has_dropped = True
                _log.warning("%s does not keep up; some of what it should get is lost", self._name)

    def end_with(self, call: Callable[[], None]) -> None:
        """Do `call` last, after what waits; its turn comes even where the queue is full."""
        while True:
            try:
                self._waiting.put_nowait(call)
                self._waiting.put_nowait(None)
                return
            except queue.Full:
                for _ in range(2):
                    self._waiting.get_nowait()

    def join(self, seconds: float) -> bool:
        """Whether everything is done, waiting up to `seconds` for it."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            try:
                call()
            except Exception as error:
                if not self._has_failed:
                    self._has_failed = True
                    _log.warning("%s failed: %s: %s", self._name, type(error).__name__, error)
        atexit.unregister(self._thread.join)
