"""`metrics.jsonl`: one line per report and per validation, appended by the trainer alone.

A crash or a full disk can leave half a line at the end. Readers pass over it and whatever else is
not a line; the next writer cuts it off.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from forgellm.paths import iso_utc
from forgellm.runs.line_file import LineFile
from forgellm.schema.run import MetricsLine

METRICS_NAME = "metrics.jsonl"
FIGURES = (
    "training_loss",
    "validation_loss",
    "learning_rate",
    "tokens_per_second",
    "memory_usage_gb",
)
"""What a line may measure, and what is shown of a run at each moment."""

_TAIL_BYTES = 1 << 16
_LONGER_THAN_LINES = 1 << 12


class MetricsWriter:
    """Appends to a run's metrics. There must be one at a time: the holder of the run's lock."""

    def __init__(self, folder: Path) -> None:
        """Opens or creates the log and cuts a torn last line off. Raises DiskFull."""
        self._file = LineFile(folder / METRICS_NAME)
        self._seq = _last_seq(folder)

    def append(self, **figures: float | int | None) -> MetricsLine:
        """Write one line and return it. NaN and infinity become None, with `non_finite` true.

        Raises DiskFull, after which the log ends with the last whole line.
        """
        finite = {k: v for k, v in figures.items() if v is None or math.isfinite(v)}
        line = MetricsLine.model_validate(
            {
                **finite,
                "non_finite": len(finite) < len(figures),
                "seq": self._seq + 1,
                "timestamp": iso_utc(),
            }
        )
        self._file.append(line.model_dump_json().encode())
        self._seq = line.seq
        return line

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_lines(folder: Path, offset: int = 0, max_bytes: int = -1) -> tuple[list[MetricsLine], int]:
    """The whole lines from byte `offset` on, and the offset to go on from.

    With `max_bytes` no more than that is read, which must be longer than a line. What is not a line of metrics is passed over. The new offset never lies inside a line.
    """
    try:
        with open(folder / METRICS_NAME, "rb") as file:
            if offset > os.fstat(file.fileno()).st_size:
                return [], offset  # no file system can go where a client may point
            file.seek(max(0, offset))
            data = file.read(max_bytes)
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return list(_parse(data[:end].split(b"\n"))), max(0, offset) + end


def last_line(folder: Path) -> MetricsLine | None:
    """The newest line, read from the end of the log alone."""
    return next(reversed(_read_tail(folder)[0]), None)


def offset_of_end(folder: Path) -> int:
    """The offset from which `read_lines` gives what is yet to be written, likewise."""
    return _read_tail(folder)[1]


def offset_before(folder: Path, seq: int) -> int:
    """A byte offset not far before the line that follows number `seq`, found without reading all."""
    try:
        low, high = 0, (folder / METRICS_NAME).stat().st_size
    except OSError:
        return 0
    while high - low > _TAIL_BYTES:
        middle = (low + high) // 2
        lines = read_lines(folder, middle, _LONGER_THAN_LINES)[0]
        if lines and lines[0].seq <= seq:
            low = middle
        else:
            high = middle
    return low


def effective(lines: Sequence[MetricsLine]) -> list[MetricsLine]:
    """The lines that count: after a resume, later ones replace those of iterations done again; see
    `curve.effective_places`."""
    # Not at the top: numpy, which a server without runs does without.
    from forgellm.runs.curve import effective_places, table_of

    places = effective_places(table_of(lines))
    return list(lines) if places is None else [lines[place] for place in places.tolist()]


def downsample(lines: Sequence[MetricsLine], max_points: int = 2000) -> list[MetricsLine]:
    """At most `max_points` of `lines` that draw the same curve; see `curve.downsample`."""
    if len(lines) <= max_points:
        return list(lines)
    from forgellm.runs import curve

    return [lines[place] for place in curve.downsample(curve.table_of(lines), max_points).tolist()]


def _read_tail(folder: Path) -> tuple[list[MetricsLine], int]:
    try:
        size = (folder / METRICS_NAME).stat().st_size
    except OSError:
        return [], 0
    return read_lines(folder, size - _TAIL_BYTES)


def _parse(texts: Iterable[bytes]) -> Iterator[MetricsLine]:
    for text in texts:
        try:
            yield MetricsLine.model_validate_json(text)
        except ValidationError:
            continue


def _last_seq(folder: Path) -> int:
    """The number of the last line that can be read, or 0."""
    last = last_line(folder) or next(reversed(read_lines(folder)[0]), None)
    return last.seq if last else 0
