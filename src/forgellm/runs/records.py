"""The records of a log as arrays, read from its index a piece at a time.

The index is not mapped into memory. What a pass over it costs is mostly the pages that a process
touches for the first time, so that each piece is read into the same small buffer; and a file that
becomes shorter while it is mapped would end the process.

    N  lines
"""

from __future__ import annotations

import os
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgellm.runs.metrics_index import (
    FIGURES,
    INTEGERS,
    index_lines,
    offset_of,
    open_index,
)

RECORD = np.dtype([(name, "<i8") for name in INTEGERS] + [(name, "<f8") for name in FIGURES])
_PIECE_LINES = 1 << 12
Places = NDArray[np.intp]


class IndexIsWrong(Exception):
    """A record says something else than its line in the log, or is gone."""


class Records:
    """[N], those of all whole lines of a log."""

    def __init__(self, folder: Path, *, trust_index: bool = True) -> None:
        self._folder = folder
        self._fd, self.num_indexed = open_index(folder) if trust_index else (-1, 0)
        if self.num_indexed:
            weakref.finalize(self, os.close, self._fd)

    def __len__(self) -> int:
        return self.num_indexed + len(self._new)

    @cached_property
    def _new(self) -> NDArray[Any]:
        """Those of lines that the index lacks, read from the log when they are first asked for."""
        start = self._end(self.num_indexed - 1) if self.num_indexed else 0
        return np.frombuffer(bytearray(b"".join(index_lines(self._folder, start))), RECORD)

    def pieces(self, start: int = 0) -> Iterator[NDArray[Any]]:
        """Those from the place `start` on, in order. A piece holds only until the next is asked for.

        Raises IndexIsWrong.
        """
        buffer = np.empty(_PIECE_LINES, RECORD)
        for first in range(start, self.num_indexed, _PIECE_LINES):
            piece = buffer[: self.num_indexed - first]
            self._read(first, piece)
            yield piece
        if len(rest := self._new[max(0, start - self.num_indexed) :]):
            yield rest

    def at(self, rows: Places, buffer: NDArray[Any] | None = None) -> NDArray[Any]:
        """Those in the places `rows`, which rise, in `buffer` where one is given.

        Raises IndexIsWrong.
        """
        num_indexed = int(rows.searchsorted(self.num_indexed))
        found = np.empty(len(rows), RECORD) if buffer is None else buffer[: len(rows)]
        end = 0
        for first, stop in neighbours(rows[:num_indexed]):
            start, end = end, end + stop - first
            self._read(first, found[start:end])
        if num_indexed < len(rows):
            found[num_indexed:] = self._new[rows[num_indexed:] - self.num_indexed]
        return found

    def num_until(self, offset: int) -> int:
        """How many of the lines end at or before byte `offset`. Raises IndexIsWrong."""
        return bisect_right(range(len(self)), offset, key=self._end)

    def _read(self, first: int, into: NDArray[Any]) -> None:
        if os.preadv(self._fd, [into.data], offset_of(first)) < into.nbytes:
            raise IndexIsWrong

    def _end(self, row: int) -> int:
        return int(self.at(np.array([row]))["end"][0])


def neighbours(rows: Places) -> Iterator[tuple[int, int]]:
    """`rows`, which rise, as ranges of rows that follow each other."""
    if len(rows):
        breaks = np.flatnonzero(np.diff(rows) > 1)
        firsts = np.append(rows[:1], rows[breaks + 1])
        lasts = np.append(rows[breaks], rows[-1:])
        yield from zip(firsts.tolist(), (lasts + 1).tolist(), strict=True)
