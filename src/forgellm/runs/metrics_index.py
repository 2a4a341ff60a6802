"""`metrics.index`: the figures of `metrics.jsonl` once more, as fixed records that are read at once.

A curve of a million lines is drawn from it without parsing them. It is a cache and nothing else: it
may be deleted at any time, is not believed where it could be older than the log, and whoever draws
from it reads the lines it shows from the log itself.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from forgellm.schema.run import MetricsLine

METRICS_NAME = "metrics.jsonl"
INDEX_NAME = "metrics.index"
BLOCKS_NAME = "metrics.blocks"
BLOCK_LINES = 128
INTEGERS = ("end", "iteration", "trained_tokens")
FIGURES = (
    "training_loss",
    "validation_loss",
    "learning_rate",
    "tokens_per_second",
    "memory_usage_gb",
)
"""The fields of a record, 8 bytes each. `end` is where in the log its line ends; NaN is null."""

_RECORD = struct.Struct(f"<{len(INTEGERS)}q{len(FIGURES)}d")
_HEADER = b"forgellm metrics index 1".ljust(_RECORD.size)
_BLOCK_BYTES = 1 << 22
# Several blocks take hardly longer than one, so that a line costs the trainer next to nothing.
_SUMMED_UP_LINES = 8 * BLOCK_LINES
_NAN = float("nan")
# The log's writer adds to the index right after the log; this is what may lie between the two.
_MOST_LAG_NS = 1_000_000_000


class IndexWriter:
    """Keeps the index of a log up to date. A problem with it ends the index, never the run."""

    def __init__(self, folder: Path) -> None:
        """Makes the index anew from the log where it does not belong to it or reach its end."""
        self._folder, self._path = folder, folder / INDEX_NAME
        self._num_lines = 0
        self._file: BinaryIO | None = None
        try:
            if _indexed_bytes(folder) != (folder / METRICS_NAME).stat().st_size:
                self._remove()  # whoever reads the old ones goes on doing so
                with open(self._path, "wb") as file:
                    file.write(_HEADER)
                    file.writelines(index_lines(folder))
            self._file = open(self._path, "ab", buffering=0)
            self._num_lines = self._file.tell() // _RECORD.size - 1
            if self._num_lines >= BLOCK_LINES:
                self._sum_up()
        except OSError:
            self._give_up()

    def append(self, line: MetricsLine, end: int) -> None:
        """`line` was written to the log and ends at byte `end`."""
        if self._file is None:
            return
        try:
            if self._file.write(pack(line, end)) < _RECORD.size:
                self._give_up()
        except OSError:
            self._give_up()
        self._num_lines += 1
        if self._num_lines % _SUMMED_UP_LINES == 0:
            self._sum_up()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _give_up(self) -> None:
        self.close()
        with suppress(OSError):  # where it stays, it soon is older than the log
            self._remove()

    def _remove(self) -> None:
        (self._folder / BLOCKS_NAME).unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _sum_up(self) -> None:
        # Not at the top: it brings numpy, which a server without runs does without.
        from forgellm.runs.block_file import catch_up

        catch_up(self._folder)


def open_index(folder: Path) -> tuple[int, int]:
    """A descriptor of an index that belongs to the log, to be closed by the caller, and how many
    whole records follow its header; -1 and 0 without one.

    The log may go on after the last record.
    """
    try:
        fd = os.open(folder / INDEX_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1, 0
    with suppress(OSError):
        count = os.fstat(fd).st_size // _RECORD.size - 1
        if count > 0 and _belongs(folder, _record(fd, -1), _end(_record(fd, count - 1))):
            return fd, count
    os.close(fd)
    return -1, 0


def offset_of(number: int) -> int:
    """Where in an index its record of that number begins; the header is number -1."""
    return (1 + number) * _RECORD.size


def index_lines(folder: Path, offset: int = 0) -> Iterator[bytes]:
    """Records of the log's whole lines from byte `offset` on, by reading them all."""
    try:
        file = open(folder / METRICS_NAME, "rb")
    except OSError:
        return
    with file:
        file.seek(offset)
        rest = b""
        while block := file.read(_BLOCK_BYTES):
            *texts, rest = (rest + block).split(b"\n")
            for text in texts:
                offset += len(text) + 1
                try:
                    yield pack(MetricsLine.model_validate_json(text), offset)
                except (ValidationError, struct.error):
                    continue


def pack(line: MetricsLine, end: int) -> bytes:
    figures = (getattr(line, name) for name in FIGURES)
    return _RECORD.pack(
        end,
        line.iteration,
        line.trained_tokens,
        *(_NAN if value is None else value for value in figures),
    )


def _indexed_bytes(folder: Path) -> int:
    """How far into the log its index reaches, or -1 without one that ends with a whole record."""
    try:
        with open(folder / INDEX_NAME, "rb") as file:
            header = file.read(_RECORD.size)
            size = os.fstat(file.fileno()).st_size
            file.seek(size - size % _RECORD.size - _RECORD.size)
            end = _end(file.read())
    except OSError:
        return -1
    return end if size % _RECORD.size == 0 and _belongs(folder, header, end) else -1


def _record(fd: int, number: int) -> bytes:
    return os.pread(fd, _RECORD.size, offset_of(number))


def _belongs(folder: Path, header: bytes, end: int) -> bool:
    try:
        log, index = (folder / METRICS_NAME).stat(), (folder / INDEX_NAME).stat()
    except OSError:
        return False
    is_older = index.st_mtime_ns + _MOST_LAG_NS < log.st_mtime_ns
    return header == _HEADER and end <= log.st_size and not is_older


def _end(records: bytes) -> int:
    """Where in the log the last of these ends; the header alone ends at 0."""
    last = records[-_RECORD.size :]
    return 0 if len(last) < _RECORD.size or last == _HEADER else int(_RECORD.unpack(last)[0])
