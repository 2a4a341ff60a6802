"""A file of lines that grows at its end, and whose last line a crash can only have torn."""

from __future__ import annotations

import os
from pathlib import Path

from forgellm.atomic import storage_errors

_BLOCK_BYTES = 1 << 16


class LineFile:
    """Appends whole lines. There must be one at a time: the holder of the run's lock."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file and cuts a torn last line off. Raises DiskFull."""
        self._name = path.name
        with storage_errors(self._name):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._fd).st_size
            if (end := _end_of_lines(self._fd, size)) < size:
                os.ftruncate(self._fd, end)

    def append(self, line: bytes) -> None:
        """Write `line`, given without its end.

        Raises DiskFull; the file then ends with the last whole line.
        """
        text = line + b"\n"
        with storage_errors(self._name):
            start = os.fstat(self._fd).st_size
            try:
                written = os.write(self._fd, text)
                while written < len(text):
                    written += os.write(self._fd, text[written:])
            except OSError:
                os.ftruncate(self._fd, start)
                raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> LineFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end_of_lines(fd: int, size: int) -> int:
    """The offset after the last whole line."""
    stop = size
    while stop > 0:
        start = max(0, stop - _BLOCK_BYTES)
        end = os.pread(fd, stop - start, start).rfind(b"\n")
        if end >= 0:
            return start + end + 1
        stop = start
    return 0
