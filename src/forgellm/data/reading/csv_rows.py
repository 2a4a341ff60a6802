"""The rows of CSV files by the rules of the csv module; a row that breaks them costs only itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from forgellm.data.reading.reader import NOT_TEXT, SkipRow, Unreadable, is_decoded, open_rows

_DELIMITERS = ",;\t|"
_LOOKED_AT_CHARACTERS = 65_536
_LOOKED_AT_RECORDS = 50
_LONGEST_RECORD = 64_000_000  # characters; beyond it a quote was never closed


def read_csv(path: Path, skip: SkipRow) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, cell by column) of each row below the header, without blank lines."""
    csv.field_size_limit(2**31 - 1)
    with open_rows(path, newline="") as file:
        delimiter = _delimiter(file, path.suffix.lower() == ".tsv")
        records = _records(file, delimiter)
        names = _names(next(records, []))
        for number, cells in enumerate(records, 1):
            if isinstance(cells, str):
                skip(cells, number)
            elif not is_decoded("".join(cells)):
                skip("not UTF-8", number)
            elif any("\0" in cell for cell in cells):
                skip("a NUL character in it", number)
            elif len(cells) < len(names):
                skip("fewer cells than the header has", number)
            elif any(cells[len(names) :]):  # empty ones come from delimiters at line ends
                skip("more cells than the header has: quote those with a delimiter in them", number)
            else:
                yield number, dict(zip(names, cells, strict=False))


def _names(header: list[str] | str) -> list[str]:
    """Of the columns; one without a name, or with that of an earlier one, is called by its place
    too. Raises Unreadable."""
    if isinstance(header, str):
        raise Unreadable(f"its header: {header}")
    if not is_decoded("".join(header)):
        raise Unreadable("not UTF-8, nor UTF-16 or UTF-32: save it as UTF-8")
    if any("\0" in name for name in header):
        raise Unreadable(NOT_TEXT)
    names = [name.strip("\ufeff ") or f"column {place}" for place, name in enumerate(header, 1)]
    return [
        f"{name} (column {place})" if name in names[: place - 1] else name
        for place, name in enumerate(names, 1)
    ]


def _delimiter(file: IO[str], is_tabs: bool) -> str:
    """Between the file's cells. `file` then stands at the header."""
    head = file.read(_LOOKED_AT_CHARACTERS)
    file.seek(0)
    first = head[: head.find("\n") + 1] or head
    said = first.strip("\ufeff\r\n").lower()
    if said.startswith("sep=") and len(said) == 5:  # as Excel writes it
        file.readline()
        return said[4]
    return "\t" if is_tabs else max(_DELIMITERS, key=lambda each: _fit(head, each))


def _fit(head: str, delimiter: str) -> tuple[bool, float, int]:
    """How well it divides the first records into as many cells as the header has, outside quotes."""
    lines = io.StringIO(head, newline="")
    records = csv.reader(lines, delimiter=delimiter)
    counts = [len(record) for record in islice(records, _LOOKED_AT_RECORDS) if record]
    if len(counts) > 2 and lines.tell() == len(head) == _LOOKED_AT_CHARACTERS:
        counts.pop()  # the head ends within it
    if not counts or counts[0] == 1:
        return False, 0.0, 0
    agree = sum(count == counts[0] for count in counts[1:])
    return True, agree / max(1, len(counts) - 1), counts[0]


def _records(file: IO[str], delimiter: str) -> Iterator[list[str] | str]:
    """The cells of each record, or why there are none. A blank line is no record."""
    lines = _Lines(file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_record()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, _TooLong) as error:
            # What an unclosed quote has swallowed are rows of their own.
            lines.take_back_all_but_first()
            yield _told(error)
            continue
        if not lines.is_blank:
            yield cells


def _told(error: Exception) -> str:
    if isinstance(error, _TooLong) or "unexpected end" in str(error):
        return "a quote in it is never closed"
    if "expected after" in str(error):
        return "a quote inside a quoted cell is not doubled, or one is not closed"
    return f"broken CSV: {error}"


class _TooLong(Exception):
    pass


class _Lines:
    """The lines of a file for a csv reader, those of the last record kept."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._again: list[str] = []  # the next line last
        self._record: list[str] = []
        self._length = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._length > _LONGEST_RECORD:
            raise _TooLong
        line = self._again.pop() if self._again else self._file.readline()
        if not line:
            raise StopIteration
        self._record.append(line)
        self._length += len(line)
        return line

    def begin_record(self) -> None:
        self._record, self._length = [], 0

    @property
    def is_blank(self) -> bool:
        return all(not line.strip(" \r\n") for line in self._record)

    def take_back_all_but_first(self) -> None:
        self._again += reversed(self._record[1:])
