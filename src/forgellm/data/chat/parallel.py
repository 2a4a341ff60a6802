"""Rows encoded on all cores: templates are rendered in Python, so each core has a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

from forgellm.data.chat.encoding import ChatFormat, EncodedRow, encode_rows
from forgellm.data.chat.pairs import row_encoder
from forgellm.data.chat.worker import read_reply, rows_message, start_message
from forgellm.data.reading.apart import CHILD_ENVIRONMENT
from forgellm.data.tokenizer import Tokenizer
from forgellm.hardware import num_cores

_WORTH_BYTES = 4_000_000  # a process takes a second to start
_MAX_WORKERS = 16  # one process reads the rows for all
_COMMAND = [sys.executable, "-P", "-m", "forgellm.data.chat.worker"]


class Row(NamedTuple):
    """A row as read, or the reason why it is none. Without a number: why there are no more."""

    number: int | None
    value: Any
    reason: str | None = None


class Encoded(NamedTuple):
    """What became of a row; text is the reason why it is left out."""

    number: int | None
    found: EncodedRow | str


Encode = Callable[[Iterator[list[Row]]], Iterator[list[Encoded]]]
"""From batches of rows to the same batches encoded, in the same order."""


@contextmanager
def encoding(tokenizer: Tokenizer, form: ChatFormat, total_bytes: int) -> Iterator[Encode]:
    """Raises TemplateRefused if the template is broken."""
    encode_here = partial(encode_rows, row_encoder(tokenizer, form))

    num_workers = min(num_cores(), _MAX_WORKERS)
    if total_bytes < _WORTH_BYTES or num_workers < 2:
        yield lambda batches: (_joined(batch, encode_here(_values(batch))) for batch in batches)
        return
    workers = _Workers(start_message(tokenizer, form), num_workers, encode_here)
    try:
        yield workers.encode
    finally:
        workers.end()


class _Workers:
    def __init__(
        self,
        start: bytes,
        count: int,
        encode_here: Callable[[list[Any]], list[EncodedRow | str]],
    ) -> None:
        self._encode_here, self._count = encode_here, count
        self._processes = [_process() for _ in range(count)]
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._threads = ThreadPoolExecutor(count, "row encoder")
        for process in self._processes:
            self._threads.submit(self._begin, process, start)

    def encode(self, batches: Iterator[list[Row]]) -> Iterator[list[Encoded]]:
        waiting: deque[tuple[list[Row], Future[list[EncodedRow | str]]]] = deque()
        for batch in batches:
            waiting.append((batch, self._threads.submit(self._encode_there, _values(batch))))
            if len(waiting) > 2 * self._count:
                done, found = waiting.popleft()
                yield _joined(done, found.result())
        for done, found in waiting:
            yield _joined(done, found.result())

    def end(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):  # what was not sent is lost
                        stream.close()

    def _begin(self, process: subprocess.Popen[bytes], start: bytes) -> None:
        with suppress(OSError):  # who meets a dead process later does its work
            _send(process, start)
        self._idle.put(process)

    def _encode_there(self, rows: list[Any]) -> list[EncodedRow | str]:
        """In a process; here where a row cannot be sent to it, or where it has died of one."""
        try:
            message = rows_message(rows)
        except TypeError:
            return self._encode_here(rows)
        process = self._idle.get()
        try:
            _send(process, message)
            assert process.stdout is not None
            return read_reply(process.stdout)
        except (OSError, EOFError):
            return self._encode_here(rows)
        finally:
            self._idle.put(process)


def _process() -> subprocess.Popen[bytes]:
    known = {name: os.environ[name] for name in (*CHILD_ENVIRONMENT, "TZ") if name in os.environ}
    return subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=known | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for the one who asked
    )


def _send(process: subprocess.Popen[bytes], message: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(message)
    process.stdin.flush()


def _values(batch: list[Row]) -> list[Any]:
    return [row.value for row in batch if row.reason is None]


def _joined(batch: list[Row], found: list[EncodedRow | str]) -> list[Encoded]:
    results = iter(found)
    return [
        Encoded(row.number, next(results) if row.reason is None else row.reason) for row in batch
    ]
