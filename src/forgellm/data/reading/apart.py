"""Files whose parsers may crash, hang or eat memory are read in a process of their own.

One such process serves many files; it is replaced when it dies or takes too long.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from forgellm.data.reading.patience import ReaderFailed, attempted
from forgellm.data.reading.reader import Passing, SkipRow, Unreadable

APART = (".html", ".htm", ".xhtml", ".pdf", ".docx", ".odt", ".epub", ".eml", ".mbox", ".ipynb")
MAX_SECONDS = 60.0  # of a processor's time for a file, which the child keeps to by itself
# On a busy machine that takes longer by the clock. So long an attempt may be silent, one after another.
_PATIENCE_SECONDS = (60.0, 120.0, 240.0)
MAX_FRAME_BYTES = 700_000_000  # JSON may take six bytes for one of text
_COMMAND = [sys.executable, "-P", "-m", "forgellm.data.reading.child"]
# What Python needs to start; keys and tokens of the user stay here.
CHILD_ENVIRONMENT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
_LAST_FRAMES = ("end", "unreadable", "passing", "failed")
# SIGBUS is what a disk gives that fails below a mapped file.
_FROM_OUTSIDE = frozenset(
    {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGBUS}
)
_idle: list[_Child] = []
_guard = threading.Lock()


def read_apart(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    """See `Reader`. Whoever stops in the middle costs a process, and nothing else. Raises Passing if
    each attempt, the next with more time, failed for a reason outside the file."""
    attempts = [partial(_read_once, path, seconds) for seconds in _PATIENCE_SECONDS]
    return attempted(attempts, path, skip)


def _read_once(path: Path, seconds: float, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    child = _take()
    is_whole = False
    try:
        for kind, *values in child.frames(path, seconds):
            if kind == "text":
                yield values[0], values[1]
            elif kind == "skip":
                skip(values[0], values[1])
            else:
                is_whole = True
                if kind == "unreadable":
                    raise Unreadable(values[0])
                if kind == "passing":
                    raise Passing(values[0])
                if kind == "failed":
                    raise ReaderFailed(values[0])
    finally:
        _give_back(child, is_whole)


def _take() -> _Child:
    with _guard:
        while _idle:
            child = _idle.pop()
            if child.process.poll() is None:
                return child
    return _Child()


def _give_back(child: _Child, is_whole: bool) -> None:
    with _guard:
        if is_whole and not _idle:
            _idle.append(child)
            return
    child.end()


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


class _Child:
    def __init__(self) -> None:
        known = {name: os.environ[name] for name in CHILD_ENVIRONMENT if name in os.environ}
        self.process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=known,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the one who asked
        )

    def frames(self, path: Path, seconds: float) -> Iterator[list[Any]]:
        """What the child says of a file, to the last frame; it may be silent for so many seconds.

        Raises Unreadable for too much text; Passing or ReaderFailed if the child says no more.
        """
        assert self.process.stdin is not None
        deadline = time.monotonic() + seconds
        order = orjson.dumps([os.fspath(path.absolute()), MAX_SECONDS]) + b"\n"
        try:
            self.process.stdin.write(order)
        except BrokenPipeError:
            raise self._ended() from None
        while True:
            (length,) = struct.unpack("<I", self._read(4, deadline, seconds))
            if length > MAX_FRAME_BYTES:
                raise Unreadable("too much text")
            frame: list[Any] = orjson.loads(self._read(length, deadline, seconds))
            yield frame
            if frame[0] in _LAST_FRAMES:
                return
            deadline = time.monotonic() + seconds  # the reader of the text may take its time

    def _ended(self) -> Exception:
        """Why the process is gone. What a parser does to itself it does again; who ends it from
        outside, a user or a system without memory, may not."""
        status = self.process.wait()
        if status >= 0:  # no signal: it could not start, as without memory or files to open
            return Passing(f"its reader could not run (exit status {status})")
        if -status in _FROM_OUTSIDE:
            return Passing(f"its reader was ended ({signal.Signals(-status).name})")
        if -status == signal.SIGXCPU:
            return ReaderFailed(f"takes more than {MAX_SECONDS:g} seconds of a processor's time")
        return ReaderFailed("its parser crashed")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def _read(self, count: int, deadline: float, seconds: float) -> bytes:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        parts = bytearray()
        while len(parts) < count:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise Passing(f"its reader said nothing for {seconds:g} seconds")
            part = os.read(fd, min(count - len(parts), 1 << 20))
            if not part:
                raise self._ended()
            parts += part
        return bytes(parts)
