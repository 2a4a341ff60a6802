"""A request to stop, passed on from the process that started others to all of them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

ASKED_TO_STOP = signal.SIGUSR1


class StoppedWaiting(Exception):
    """The request came before there were any processes."""


def command_of(module_arguments: list[str]) -> list[str]:
    # -P: a file in the workspace must not pass for a module.
    return [sys.executable, "-P", "-m", *module_arguments]


@contextmanager
def passed_on(command: list[str]) -> Iterator[None]:
    """While it lasts, SIGTERM and SIGINT reach the descendants that run `command` as ASKED_TO_STOP.

    Raises StoppedWaiting where there are none yet.
    """

    def pass_on(signum: int, frame: FrameType | None) -> None:
        found = list(running(command))
        for process in found:
            with suppress(psutil.Error):
                process.send_signal(ASKED_TO_STOP)
        if not found:
            raise StoppedWaiting

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def running(command: list[str]) -> Iterator[psutil.Process]:
    """This process's descendants that run `command`."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline() == command:
                yield process
