"""A server as a child process: it is there before we answer, and neither of the two outlives the other."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from forgellm.errors import EngineUnavailable

_START_SECONDS = 1800.0  # large models are read from slow disks, and compiled
_END_SECONDS = 10.0
_POLL_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1


@contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str],
    name: str,
    is_ready: Callable[[], bool],
) -> Iterator[None]:
    """The child `name`, from when it is ready. To be used in the main thread.

    When the child ends by itself, this process gets a SIGTERM, which should raise SystemExit; it
    leaves here as EngineUnavailable.
    """
    # In a session of its own: Ctrl-C reaches this process alone, which then ends the child.
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=2,  # what it has to say is no result of ours
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
    is_closing, has_ended = threading.Event(), threading.Event()

    def watch() -> None:
        process.wait()
        if not is_closing.is_set():
            has_ended.set()
            os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch, daemon=True, name=name)
    watcher.start()
    try:
        _wait_until(is_ready, name)
        yield
    finally:
        is_closing.set()
        _end(process)
        watcher.join()
        if has_ended.is_set():
            raise EngineUnavailable(
                f"{name} ended by itself ({process.returncode})",
                suggestion="What it said last stands above.",
            )


def _wait_until(is_ready: Callable[[], bool], name: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not is_ready():
        if time.monotonic() > deadline:
            raise EngineUnavailable(
                f"{name} was not ready within {_START_SECONDS / 60:.0f} minutes"
            )
        time.sleep(_POLL_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it started."""
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a dead group
        pass


_libc = ctypes.CDLL(None)


def _end_with_parent() -> None:
    """In the child: Linux ends it with us, also when we are killed."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
