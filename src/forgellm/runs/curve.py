"""A run's whole curve as columns of numbers: what counts of it, and what to draw.

The same as `metrics.effective` and `metrics.downsample` say of a list of lines, for a million of
them at once.

    N  lines
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

from forgellm.runs.metrics_index import (
    FIGURES,
    INTEGERS,
    METRICS_NAME,
    index_lines,
    map_records,
    pack,
)
from forgellm.schema.run import MetricsLine

_RECORD = np.dtype([(name, "<i8") for name in INTEGERS] + [(name, "<f8") for name in FIGURES])
_LINES = TypeAdapter(list[MetricsLine])
_PIECE_LINES = 1 << 13
_NEVER = np.iinfo(np.int64).max
Numbers = NDArray[np.float64]
Places = NDArray[np.intp]


class IndexIsWrong(Exception):
    """A record says something else than its line in the log."""


class Curve:
    """Lines of a log in their order.

    Args:
        records: of all lines of the log, structured [N].
        rows: which of them this curve has, rising; None for all.
    """

    def __init__(self, folder: Path, records: NDArray[Any], rows: Places | None = None) -> None:
        self.folder = folder
        self._records = records
        self._rows = rows
        self._columns: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self._records) if self._rows is None else len(self._rows)

    def column(self, name: str) -> NDArray[Any]:
        """[N], int64 or float64; NaN where the line has no such figure."""
        if name not in self._columns:
            values = self._records[name]
            values = values.copy() if self._rows is None else values[self._rows]
            self._columns[name] = values
        return self._columns[name]

    def pieces(self, *names: str) -> Iterator[list[NDArray[Any]]]:
        """Some columns, a bounded number of lines at a time, for what need not hold them whole."""
        for first in range(0, len(self), _PIECE_LINES):
            which = slice(first, first + _PIECE_LINES)
            piece = self._records[which if self._rows is None else self._rows[which]]
            yield [np.ascontiguousarray(piece[name]) for name in names]

    @cached_property
    def validated(self) -> Places:
        """Places of the lines that have a validation loss."""
        found, first = [np.array([], np.intp)], 0
        for (losses,) in self.pieces("validation_loss"):
            found.append(first + np.flatnonzero(~np.isnan(losses)))
            first += len(losses)
        return np.concatenate(found)

    def select(self, places: Places) -> Curve:
        return Curve(
            self.folder, self._records, places if self._rows is None else self._rows[places]
        )

    def lines(self) -> list[MetricsLine]:
        """As the log itself has them. Raises IndexIsWrong, OSError."""
        rows = np.arange(len(self)) if self._rows is None else self._rows
        ends = self._records["end"]
        starts = np.where(rows == 0, 0, ends[rows - 1]) if len(rows) else rows
        chosen = self._records[rows]
        with open(self.folder / METRICS_NAME, "rb") as log:
            texts = [
                os.pread(log.fileno(), end - start, start)[:-1].rpartition(b"\n")[2]
                for start, end in zip(starts.tolist(), ends[rows].tolist(), strict=True)
            ]
        try:
            lines = _LINES.validate_json(b"[" + b",".join(texts) + b"]")
            packed = map(pack, lines, ends[rows].tolist())
        except ValidationError:
            raise IndexIsWrong from None
        if len(lines) != len(rows) or b"".join(packed) != chosen.tobytes():
            raise IndexIsWrong
        return lines


def read_curve(folder: Path, *, trust_index: bool = True) -> Curve:
    """All lines of a run's log, from its index where there is one and that may be trusted."""
    records = np.frombuffer(map_records(folder) if trust_index else b"", _RECORD)
    new = bytearray()
    for record in index_lines(folder, int(records["end"][-1]) if len(records) else 0):
        new += record
    if new:
        records = np.concatenate([records, np.frombuffer(new, _RECORD)])
    return Curve(folder, records)


def drawn(folder: Path) -> tuple[list[MetricsLine], Curve]:
    """What counts of the curve, and the lines of it to draw, at most 2,000."""
    for trust_index in (True, False):
        curve = effective(read_curve(folder, trust_index=trust_index))
        with suppress(IndexIsWrong, OSError):
            return curve.select(downsample(curve)).lines(), curve
    return [], curve.select(np.array([], np.intp))  # the log was replaced in this moment


def figures_before(folder: Path, offset: int) -> tuple[dict[str, float | None], int]:
    """The last figure of each kind in the lines that end at or before byte `offset`, and where the
    last of these ends. A report without a loss has the loss None."""
    for trust_index in (True, False):
        curve = read_curve(folder, trust_index=trust_index)
        ends = curve.column("end")
        curve = curve.select(np.arange(ends.searchsorted(offset, "right")))
        known = {name: ~np.isnan(curve.column(name)) for name in FIGURES}
        known["training_loss"] |= known["learning_rate"]
        last = {name: np.flatnonzero(places)[-1:] for name, places in known.items()}
        with suppress(IndexIsWrong, OSError):
            figures = {
                name: getattr(line, name)
                for name, place in last.items()
                for line in curve.select(place).lines()
            }
            return figures, int(ends[len(curve) - 1]) if len(curve) else 0
    return {}, 0


def effective(curve: Curve) -> Curve:
    """As `metrics.effective`: a later line replaces those of its kind from its iteration on, and
    those of the other kind from beyond it."""
    if _rises(curve):
        return curve
    iteration = curve.column("iteration")
    is_report = ~(np.isnan(curve.column("training_loss")) & np.isnan(curve.column("learning_rate")))
    next_report = _lowest_later(np.where(is_report, iteration, _NEVER))
    next_validation = _lowest_later(np.where(is_report, _NEVER, iteration))
    same = np.where(is_report, next_report, next_validation)
    other = np.where(is_report, next_validation, next_report)
    counts = (iteration < same) & (iteration <= other)
    return curve if counts.all() else curve.select(np.flatnonzero(counts))


def _rises(curve: Curve) -> bool:
    """Whether each line is of a later iteration than the one before: mostly nothing is done again."""
    before = -1
    for (piece,) in curve.pieces("iteration"):
        if piece[0] <= before or not (piece[1:] > piece[:-1]).all():
            return False
        before = piece[-1]
    return True


def _lowest_later(values: NDArray[np.int64]) -> NDArray[np.int64]:
    lowest = np.minimum.accumulate(values[::-1])[::-1]
    return np.append(lowest[1:], _NEVER)


def downsample(curve: Curve, max_points: int = 2000) -> Places:
    """Places of the lines that `metrics.downsample` keeps; `max_points` is 2 or more."""
    total = len(curve)
    if total <= max_points:
        return np.arange(total)
    validated = curve.validated
    room = max_points // 2 - 1
    if len(validated) > room:
        validated = validated[(np.arange(room) + 1) * len(validated) // room - 1]
    chosen = {0, total - 1, *validated.tolist()}
    num_buckets = max(0, max_points - len(chosen)) // 2
    loss = curve.column("training_loss")
    for number in range(num_buckets):
        first, last = number * total // num_buckets, (number + 1) * total // num_buckets
        chosen |= _extremes(loss[first:last], first)
    return np.array(sorted(chosen), np.intp)


def _extremes(losses: Numbers, first: int) -> set[int]:
    if not len(losses):
        return set()
    lowest = int(losses.argmin())  # or a NaN
    if np.isnan(losses[lowest]):
        known = np.flatnonzero(~np.isnan(losses))
        if not len(known):
            return {first}
        return {first + int(known[place]) for place in _extremes(losses[known], 0)}
    # Of equals the first of the lowest and the last of the highest, as for a list of lines.
    return {first + lowest, first + len(losses) - 1 - int(losses[::-1].argmax())}
