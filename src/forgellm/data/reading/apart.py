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
from pathlib import Path
from typing import Any

import orjson

from forgellm.data.reading.reader import Passing, SkipRow, Unreadable

APART = (".html", ".htm", ".xhtml", ".pdf", ".docx", ".odt", ".epub", ".eml", ".mbox", ".ipynb")
MAX_SECONDS = 60.0  # of a processor's time for a file, which the child keeps to by itself
# As long may it be silent: on a busy machine, a processor's time takes longer than that.
MAX_SILENT_SECONDS = 2 * MAX_SECONDS
MAX_FRAME_BYTES = 700_000_000  # JSON may take six bytes for one of text
_COMMAND = [sys.executable, "-P", "-m", "forgellm.data.reading.child"]
# What Python needs to start; keys and tokens of the user stay here.
CHILD_ENVIRONMENT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
_idle: list[_Child] = []
_guard = threading.Lock()


def read_apart(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    """See `Reader`. Whoever stops in the middle costs a process, and nothing else."""
    child = _take()
    is_whole = False
    try:
        for kind, *values in child.frames(path):
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

    def frames(self, path: Path) -> Iterator[list[Any]]:
        """What the child says of a file, to the last frame. Raises Unreadable or Passing if it says no
        more."""
        assert self.process.stdin is not None
        deadline = time.monotonic() + MAX_SILENT_SECONDS
        order = orjson.dumps([os.fspath(path.absolute()), MAX_SECONDS]) + b"\n"
        try:
            self.process.stdin.write(order)
        except OSError:
            raise self._ended() from None
        while True:
            (length,) = struct.unpack("<I", self._read(4, deadline))
            if length > MAX_FRAME_BYTES:
                raise Unreadable("too much text")
            frame: list[Any] = orjson.loads(self._read(length, deadline))
            yield frame
            if frame[0] in ("end", "unreadable", "passing"):
                return
            deadline = (
                time.monotonic() + MAX_SILENT_SECONDS
            )  # the reader of the text may take its time

    def _ended(self) -> Exception:
        """Why the process is gone. What a parser does to itself it does again; who ends it from
        outside, a user or a system without memory, may not."""
        self.process.wait()
        number = -(self.process.returncode or 0)
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            return Passing(f"its reader was ended ({signal.Signals(number).name})")
        if number == signal.SIGXCPU:
            return Unreadable(f"takes more than {MAX_SECONDS:g} seconds of a processor's time")
        return Unreadable("its parser crashed")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def _read(self, count: int, deadline: float) -> bytes:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        parts = bytearray()
        while len(parts) < count:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise Passing(f"its reader said nothing for {MAX_SILENT_SECONDS:g} seconds")
            part = os.read(fd, min(count - len(parts), 1 << 20))
            if not part:
                raise self._ended()
            parts += part
        return bytes(parts)
