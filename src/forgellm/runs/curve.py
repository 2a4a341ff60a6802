"""A run's whole curve as columns of numbers, and what counts of it.

The same as `metrics.effective` says of a list of lines, for a million of them at once.

    N  lines
    K  blocks of them
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from forgellm.runs.block_file import read_blocks
from forgellm.runs.blocks import BLOCK, sum_up
from forgellm.runs.metrics_index import BLOCK_LINES, FIGURES, METRICS_NAME, pack
from forgellm.runs.records import RECORD, IndexIsWrong, Places, Records
from forgellm.schema.run import MetricsLine

_LINES = TypeAdapter(list[MetricsLine])
_PIECE_LINES = 1 << 12
_NEVER = np.iinfo(np.int64).max
Integers = NDArray[np.int64]


class Curve:
    """Lines of a log in their order. What reads their records raises IndexIsWrong.

    Args:
        records: of all lines of the log.
        rows: which of them this curve has, rising; None for all.
    """

    def __init__(self, folder: Path, records: Records, rows: Places | None = None) -> None:
        self.folder = folder
        self._records = records
        self._rows = rows

    def __len__(self) -> int:
        return len(self._records) if self._rows is None else len(self._rows)

    def columns(self, *names: str) -> list[NDArray[Any]]:
        """Each [N], int64 or float64; NaN where the line has no such figure."""
        found = [[np.empty(0, RECORD[name]) for name in names]]
        found += [[piece[name].copy() for name in names] for piece in self._pieces()]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    @cached_property
    def blocks(self) -> NDArray[Any]:
        """[K] of BLOCK, of all lines. The last one, and some before it, may be short."""
        # In one growing piece of memory: to touch new pages costs more than to calculate.
        blocks = read_blocks(self.folder, self._records)
        if self._rows is not None:  # up to the first line that is left out they are the same
            num_same = int((self._rows - np.arange(len(self))).searchsorted(1))
            del blocks[num_same // BLOCK_LINES * BLOCK.itemsize :]
        for piece in self._pieces(BLOCK_LINES * (len(blocks) // BLOCK.itemsize)):
            num_whole = len(piece) // BLOCK_LINES * BLOCK_LINES
            blocks += sum_up(piece[:num_whole].reshape(-1, BLOCK_LINES)).tobytes()
            if len(piece) > num_whole:
                blocks += sum_up(piece[num_whole:].reshape(1, -1)).tobytes()
        return np.frombuffer(blocks, BLOCK)

    @cached_property
    def starts(self) -> Integers:
        """[K + 1] places where the blocks begin, and where the last one ends."""
        return np.append(0, self.blocks["num_lines"].cumsum())

    def _pieces(self, start: int = 0) -> Iterator[NDArray[Any]]:
        if self._rows is None:
            yield from self._records.pieces(start)
            return
        buffer = np.empty(min(_PIECE_LINES, len(self)), RECORD)
        for first in range(start, len(self._rows), _PIECE_LINES):
            yield self._records.at(self._rows[first : first + _PIECE_LINES], buffer)

    def select(self, places: Places) -> Curve:
        return Curve(
            self.folder, self._records, places if self._rows is None else self._rows[places]
        )

    def lines(self) -> list[MetricsLine]:
        """As the log itself has them. Raises IndexIsWrong, OSError."""
        rows = np.arange(len(self)) if self._rows is None else self._rows
        # A line begins where the one before it ends, so that this one's record is read as well.
        wanted = np.union1d(rows, np.maximum(rows - 1, 0))
        records = self._records.at(wanted)
        chosen = records[wanted.searchsorted(rows)]
        starts = records["end"][wanted.searchsorted(rows - 1)]
        starts[rows == 0] = 0
        ends = chosen["end"].tolist()
        with open(self.folder / METRICS_NAME, "rb") as log:
            texts = [
                os.pread(log.fileno(), end - start, start)[:-1].rpartition(b"\n")[2]
                for start, end in zip(starts.tolist(), ends, strict=True)
            ]
        try:
            lines = _LINES.validate_json(b"[" + b",".join(texts) + b"]")
            packed = map(pack, lines, ends)
        except ValidationError:
            raise IndexIsWrong from None
        if len(lines) != len(rows) or b"".join(packed) != chosen.tobytes():
            raise IndexIsWrong
        return lines


def read_curve(folder: Path, *, trust_index: bool = True) -> Curve:
    """All lines of a run's log, from its index where there is one and that may be trusted."""
    return Curve(folder, Records(folder, trust_index=trust_index))


def figures_before(folder: Path, offset: int) -> tuple[dict[str, float | None], int]:
    """The last figure of each kind in the lines that end at or before byte `offset`, and where the
    last of these ends. A report without a loss has the loss None."""
    for trust_index in (True, False):
        with suppress(IndexIsWrong, OSError):
            return _figures_before(folder, Records(folder, trust_index=trust_index), offset)
    return {}, 0  # the log was replaced in this moment


def _figures_before(
    folder: Path, records: Records, offset: int
) -> tuple[dict[str, float | None], int]:
    num_lines = records.num_until(offset)
    last: dict[str, int] = {}
    for stop in range(num_lines, 0, -_PIECE_LINES):
        first = max(0, stop - _PIECE_LINES)
        for name, place in _last_known(records.at(np.arange(first, stop))).items():
            last.setdefault(name, first + place)
        if len(last) == len(FIGURES):
            break
    rows = np.array(sorted({*last.values(), num_lines - 1} if num_lines else ()), np.intp)
    lines = dict(zip(rows.tolist(), Curve(folder, records, rows).lines(), strict=True))
    end = int(records.at(rows[-1:])["end"].sum())
    return {name: getattr(lines[row], name) for name, row in last.items()}, end


def _last_known(piece: NDArray[Any]) -> dict[str, int]:
    """Where in the piece each kind of figure is known last."""
    known = {name: ~np.isnan(piece[name]) for name in FIGURES}
    known["training_loss"] |= known["learning_rate"]
    return {
        name: len(piece) - 1 - int(places[::-1].argmax())
        for name, places in known.items()
        if places.any()
    }


def effective(curve: Curve) -> Curve:
    """As `metrics.effective`: a later line replaces those of its kind from its iteration on, and
    those of the other kind from beyond it."""
    if _rises(curve.blocks):  # mostly nothing is done again
        return curve
    iteration, loss, rate = curve.columns("iteration", "training_loss", "learning_rate")
    is_report = ~(np.isnan(loss) & np.isnan(rate))
    next_report = _lowest_later(np.where(is_report, iteration, _NEVER))
    next_validation = _lowest_later(np.where(is_report, _NEVER, iteration))
    same = np.where(is_report, next_report, next_validation)
    other = np.where(is_report, next_validation, next_report)
    counts = (iteration < same) & (iteration <= other)
    return curve if counts.all() else curve.select(np.flatnonzero(counts))


def _rises(blocks: NDArray[Any]) -> bool:
    first, last = blocks["first_iteration"], blocks["last_iteration"]
    return bool(blocks["rises"].all() and (first[1:] > last[:-1]).all())


def _lowest_later(values: Integers) -> Integers:
    lowest = np.minimum.accumulate(values[::-1])[::-1]
    return np.append(lowest[1:], _NEVER)
