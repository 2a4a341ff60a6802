"""A run's curve: the figures of `metrics.jsonl` as columns of numbers, and which lines count and are
drawn.

A log of a million lines takes seconds to parse and some milliseconds to calculate with. So what was
parsed is kept in memory and grows with the log: only the first look at a log reads all of it.

    N  lines
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from forgellm.runs.metrics import FIGURES, METRICS_NAME
from forgellm.schema.run import MetricsLine

INTEGERS = ("iteration", "trained_tokens")
Places = NDArray[np.intp]

_LINES = TypeAdapter(list[MetricsLine])
_BLOCK_BYTES = 1 << 22
_FIRST_CAPACITY = 1 << 10
# 64 bytes each: what a server may keep in memory of the logs that were looked at last.
_MOST_KEPT_LINES = 2_000_000
_MARK_BYTES = 64
_NEVER = np.iinfo(np.int64).max


class LogReplaced(Exception):
    """The log is no longer the one that the table was read from."""


class Table:
    """The figures of lines as columns, which must not be written to.

    `table[name]` is [N]: int64 for INTEGERS and for `end`, the byte in the log where a line ends;
    float64 for FIGURES, NaN where the line has no such figure.
    """

    def __init__(self, columns: dict[str, NDArray[Any]]) -> None:
        self._columns = columns

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def __len__(self) -> int:
        return len(self._columns["end"])

    def take(self, places: Places | slice) -> Table:
        return Table({name: column[places] for name, column in self._columns.items()})


def table_of(lines: Sequence[MetricsLine]) -> Table:
    """The table of lines that were read already; their ends in the log are unknown, and 0."""
    integers = {name: np.array([getattr(x, name) for x in lines], np.int64) for name in INTEGERS}
    figures = {name: np.array([getattr(x, name) for x in lines], np.float64) for name in FIGURES}
    return Table({"end": np.zeros(len(lines), np.int64), **integers, **figures})


@dataclass(frozen=True)
class Curve:
    """Some lines of a log, in its order.

    Attributes:
        log: of all lines of the log.
        places: where in `log` the lines of this curve are, rising; None for all of them.
    """

    folder: Path
    log: Table
    places: Places | None = None

    @property
    def table(self) -> Table:
        return self.log if self.places is None else self.log.take(self.places)

    def __len__(self) -> int:
        return len(self.log) if self.places is None else len(self.places)

    def select(self, places: Places) -> Curve:
        return Curve(self.folder, self.log, places if self.places is None else self.places[places])

    def lines(self) -> list[MetricsLine]:
        """As the log itself has them. Raises LogReplaced, OSError."""
        places = np.arange(len(self.log)) if self.places is None else self.places
        if not len(places):
            return []
        ends = self.log["end"]
        starts = np.where(places > 0, ends[places - 1], 0)
        with open(self.folder / METRICS_NAME, "rb") as log:
            # Before a line there may be text that is none, which the table passed over.
            texts = [
                os.pread(log.fileno(), end - start, start)[:-1].rpartition(b"\n")[2]
                for start, end in zip(starts.tolist(), ends[places].tolist(), strict=True)
            ]
        try:
            lines = _LINES.validate_json(b"[" + b",".join(texts) + b"]")
        except ValidationError:
            raise LogReplaced from None
        if [line.iteration for line in lines] != self.log["iteration"][places].tolist():
            raise LogReplaced
        return lines


def read_curve(folder: Path) -> Curve:
    """All lines of a run's log. The first look parses all of it, later ones what was added."""
    return Curve(folder, _logs.table(folder))


def drawn(folder: Path) -> tuple[Table, Places, list[MetricsLine]]:
    """All that counts of the curve, and at most 2,000 lines of it to draw: where they are, and they
    themselves."""
    for _ in range(2):
        curve = effective(read_curve(folder))
        places = downsample(curve.table)
        try:
            return curve.table, places, curve.select(places).lines()
        except (LogReplaced, OSError):
            _logs.forget(folder)
    return table_of([]), np.array([], np.intp), []  # the log is being replaced in this moment


def effective(curve: Curve) -> Curve:
    """What counts of a curve; see `metrics.effective`."""
    places = effective_places(curve.table)
    return curve if places is None else curve.select(places)


def effective_places(table: Table) -> Places | None:
    """Where the lines that count are; None if all of them do.

    After a resume, iterations are done again. A later line replaces those of its own kind, report
    or validation, from its iteration on, and those of the other kind from beyond it: a validation
    may stand before or after the report of its own iteration.
    """
    iteration = table["iteration"]
    if (iteration[1:] > iteration[:-1]).all():  # mostly nothing is done again
        return None
    is_report = ~(np.isnan(table["training_loss"]) & np.isnan(table["learning_rate"]))
    next_report = _lowest_later(np.where(is_report, iteration, _NEVER))
    next_validation = _lowest_later(np.where(is_report, _NEVER, iteration))
    same = np.where(is_report, next_report, next_validation)
    other = np.where(is_report, next_validation, next_report)
    counts = (iteration < same) & (iteration <= other)
    return None if counts.all() else np.flatnonzero(counts)


def downsample(table: Table, max_points: int = 2000) -> Places:
    """Places of at most `max_points` lines that draw the same curve.

    Kept are the first and the last, the smallest and largest training loss of each bucket, and
    every validation as long as these take no more than half of the points.
    """
    total = len(table)
    if total <= max_points:
        return np.arange(total)
    if max_points < 2:
        return np.arange(total)[total - max_points :]
    validated = np.flatnonzero(~np.isnan(table["validation_loss"]))
    most = max_points // 2 - 1
    if len(validated) > most:
        validated = validated[(np.arange(most) + 1) * len(validated) // max(1, most) - 1]
    chosen = {0, total - 1, *validated.tolist()}
    num_buckets = max(0, max_points - len(chosen)) // 2
    edges = np.arange(num_buckets + 1) * total // max(1, num_buckets)
    losses = table["training_loss"]
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        chosen |= {first + place for place in _extremes(losses[first:last])}
    return np.array(sorted(chosen), np.intp)


def figures_before(folder: Path, offset: int) -> tuple[dict[str, float | None], int]:
    """The last figure of each kind in the lines that end at or before byte `offset`, and where the
    last of these ends. A report without a loss has the loss None."""
    log = _logs.table(folder)
    table = log.take(slice(int(log["end"].searchsorted(offset, "right"))))
    found: dict[str, float | None] = {}
    is_known = {name: ~np.isnan(table[name]) for name in FIGURES}
    is_known["training_loss"] |= is_known["learning_rate"]
    for name, known in is_known.items():
        if known.any():
            value = float(table[name][len(known) - 1 - int(known[::-1].argmax())])
            found[name] = None if np.isnan(value) else value
    return found, int(table["end"][-1]) if len(table) else 0


class _Log:
    """The table of one log as far as it was read."""

    def __init__(self) -> None:
        self._seen = (0, 0, 0)  # inode, size and date of the file at the last look
        self._mark = b""  # what stands in the log before `_offset`
        self._offset = self._count = 0
        self._columns = {
            name: np.empty(_FIRST_CAPACITY, np.int64 if name not in FIGURES else np.float64)
            for name in ("end", *INTEGERS, *FIGURES)
        }

    def __len__(self) -> int:
        return self._count

    def table(self) -> Table:
        return Table({name: column[: self._count] for name, column in self._columns.items()})

    def goes_on_as(self, file: BinaryIO) -> bool:
        """Whether the file is the one that was read so far, unchanged or grown."""
        found = os.fstat(file.fileno())
        inode, size, date = self._seen
        if (inode, size) == (found.st_ino, found.st_size):
            return date == found.st_mtime_ns
        before = os.pread(file.fileno(), len(self._mark), self._offset - len(self._mark))
        return inode == found.st_ino and size < found.st_size and before == self._mark

    def read_on(self, file: BinaryIO) -> None:
        found = os.fstat(file.fileno())
        self._seen = found.st_ino, found.st_size, found.st_mtime_ns
        file.seek(self._offset)
        rest = b""
        while block := file.read(_BLOCK_BYTES):
            *texts, rest = (rest + block).split(b"\n")
            if texts:
                self._add(texts)
                self._mark = (self._mark + b"\n".join(texts[-2:]) + b"\n")[-_MARK_BYTES:]

    def _add(self, texts: list[bytes]) -> None:
        ends = self._offset + np.cumsum([len(text) + 1 for text in texts])
        self._offset = int(ends[-1])
        is_line, columns = _parsed(texts)
        columns["end"] = ends[is_line]
        count = self._count + len(columns["end"])
        for name, column in self._columns.items():
            if count > len(column):
                # Tables that were handed out keep the old memory.
                column = np.concatenate([column, np.empty(max(count, len(column)), column.dtype)])
                self._columns[name] = column
            column[self._count : count] = columns[name]
        self._count = count


class _Logs:
    """The logs that were looked at last. For several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[Path, _Log] = OrderedDict()

    def table(self, folder: Path) -> Table:
        """Of a run's log; empty where there is none."""
        try:
            file = open(folder / METRICS_NAME, "rb")
        except OSError:
            self.forget(folder)
            return table_of([])
        with file, self._lock:
            log = self._known.pop(folder, None)
            if log is None or not log.goes_on_as(file):
                log = _Log()
            log.read_on(file)
            self._known[folder] = log
            while len(self._known) > 1 and sum(map(len, self._known.values())) > _MOST_KEPT_LINES:
                self._known.popitem(last=False)
            return log.table()

    def forget(self, folder: Path) -> None:
        with self._lock:
            self._known.pop(folder, None)


_logs = _Logs()


def _parsed(texts: list[bytes]) -> tuple[NDArray[np.bool_], dict[str, NDArray[Any]]]:
    """Which of the texts are lines of metrics, and the columns of these."""
    try:  # all at once, which nearly always works
        rows = orjson.loads(b"[" + b",".join(texts) + b"]")
        if len(rows) == len(texts):
            return np.ones(len(texts), bool), _columns(rows)
    except (ValueError, TypeError, KeyError, OverflowError):
        pass
    lines = list(_line_by_line(texts))
    kept = [line for line in lines if line is not None]
    is_line = np.array([line is not None for line in lines], bool)
    return is_line, _columns([line.model_dump() for line in kept])


def _columns(rows: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    """Raises KeyError, TypeError, ValueError or OverflowError where a row is no line of metrics."""
    for row in rows:
        row["timestamp"]
        if type(row["seq"]) is not int or type(row["iteration"]) is not int:
            raise TypeError
    return {
        "iteration": np.array([row["iteration"] for row in rows], np.int64),
        "trained_tokens": np.array([row.get("trained_tokens", 0) for row in rows], np.int64),
        **{name: np.array([row.get(name) for row in rows], np.float64) for name in FIGURES},
    }


def _line_by_line(texts: list[bytes]) -> Iterator[MetricsLine | None]:
    for text in texts:
        try:
            yield MetricsLine.model_validate_json(text)
        except ValidationError:
            yield None


def _lowest_later(values: NDArray[np.int64]) -> NDArray[np.int64]:
    lowest = np.minimum.accumulate(values[::-1])[::-1]
    return np.append(lowest[1:], _NEVER)


def _extremes(losses: NDArray[np.float64]) -> set[int]:
    """Where the lowest and the highest loss are; where none is known, the first place."""
    known = np.flatnonzero(~np.isnan(losses))
    if not len(known):
        return {0} if len(losses) else set()
    # Of equals the first of the lowest and the last of the highest.
    values = losses[known]
    return {int(known[values.argmin()]), int(known[len(known) - 1 - values[::-1].argmax()])}
