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
from forgellm.runs.metrics_index import METRICS_NAME, IndexWriter
from forgellm.schema.run import MetricsLine

_TAIL_BYTES = 1 << 16
_LONGER_THAN_LINES = 1 << 12


class MetricsWriter:
    """Appends to a run's metrics. There must be one at a time: the holder of the run's lock."""

    def __init__(self, folder: Path) -> None:
        """Opens or creates the log and cuts a torn last line off. Raises DiskFull."""
        self._file = LineFile(folder / METRICS_NAME)
        self._seq = _last_seq(folder)
        self._index = IndexWriter(folder)

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
        end = self._file.append(line.model_dump_json().encode())
        self._index.append(line, end)
        self._seq = line.seq
        return line

    def close(self) -> None:
        self._file.close()
        self._index.close()

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
    """The lines that count: after a resume, later ones replace those of iterations done again.

    Reports and validations are told apart, as a validation may come before or after the report of
    its own iteration without replacing it.
    """
    reports: list[MetricsLine] = []
    validations: list[MetricsLine] = []
    for line in lines:
        same, other = (reports, validations) if _is_report(line) else (validations, reports)
        while same and same[-1].iteration >= line.iteration:
            same.pop()
        while other and other[-1].iteration > line.iteration:
            other.pop()
        same.append(line)
    return sorted(reports + validations, key=lambda line: line.seq)


def downsample(lines: Sequence[MetricsLine], max_points: int = 2000) -> list[MetricsLine]:
    """At most `max_points` of `lines` that draw the same curve.

    Kept are the first and the last, the smallest and largest training loss of each bucket, and
    every validation as long as these take no more than half of the points.
    """
    if len(lines) <= max_points:
        return list(lines)
    if max_points < 2:
        return [lines[-1]][:max_points]
    validated = [i for i, line in enumerate(lines) if line.validation_loss is not None]
    chosen = {0, len(lines) - 1, *_thin(validated, max_points // 2 - 1)}
    num_buckets = max(0, max_points - len(chosen)) // 2
    for number in range(num_buckets):
        bucket = range(number * len(lines) // num_buckets, (number + 1) * len(lines) // num_buckets)
        chosen |= _extremes(lines, bucket)
    return [lines[i] for i in sorted(chosen)]


def _extremes(lines: Sequence[MetricsLine], bucket: range) -> set[int]:
    """Where in the bucket the smallest and the largest loss are; where none is, its first line."""
    losses = [(loss, i) for i in bucket if (loss := lines[i].training_loss) is not None]
    return {min(losses)[1], max(losses)[1]} if losses else set(bucket[:1])


def _thin(indices: list[int], count: int) -> list[int]:
    if len(indices) <= count:
        return indices
    return [indices[(number + 1) * len(indices) // count - 1] for number in range(count)]


def _is_report(line: MetricsLine) -> bool:
    return line.training_loss is not None or line.learning_rate is not None


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
