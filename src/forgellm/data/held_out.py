"""The texts of a probe file or a benchmark that training must not see, as `overlap` takes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forgellm.data.documents import DatasetFile, ReadReport, read_file
from forgellm.data.ngrams import words_of
from forgellm.data.overlap import MIN_WORDS, HeldOut
from forgellm.data.readers import READERS
from forgellm.data.reading.patience import read_patiently
from forgellm.data.reading.reader import Unreadable, reason_of
from forgellm.data.reading.row_readers import ROW_READERS
from forgellm.errors import DataError

_LINES = (".txt", ".text")


def held_out_texts(file: Path) -> Iterator[HeldOut]:
    """One for each question and statement of a probe file, each text field of a row, each line of
    plain text, each document of any other file.

    Raises DataError if the file cannot be read.
    """
    suffix = file.suffix.lower()
    try:
        if suffix in ROW_READERS:
            for number, row in read_patiently(ROW_READERS[suffix], file, lambda *_: None):
                yield from _of_row(row, file.name, number)
        elif suffix in READERS:
            yield from _of_document(file)
        else:
            raise Unreadable("unsupported type")
    except (Unreadable, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{file.name} cannot be compared with: {reason_of(error)}",
            suggestion="Give a probe file, or JSON lines, CSV, JSON or plain text with a line each.",
        ) from None


def _of_row(row: Any, name: str, number: int) -> Iterator[HeldOut]:
    if isinstance(row, dict) and isinstance(row.get("probes"), list):
        for place, probe in enumerate(row["probes"], 1):
            yield from _of_probe(probe, f"{name}:{place}")
        return
    found = list(_strings(row))
    long = [item for item in found if len(words_of(item[1])) >= MIN_WORDS]
    for field, text in long or found[:1]:
        yield HeldOut(f"{name}:{number} {field}".strip(), text)


def _of_probe(probe: Any, name: str) -> Iterator[HeldOut]:
    """The question as it is asked, and the statement with its right end."""
    if not isinstance(probe, dict):
        return
    if isinstance(question := probe.get("question"), str):
        yield HeldOut(f"{name} question", question)
    stem, answer = probe.get("stem"), probe.get("answer")
    if isinstance(stem, str) and isinstance(answer, str):
        yield HeldOut(f"{name} statement", f"{stem} {answer}")


def _strings(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """(name of the field, text) of every text in a row, however deep."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, field)


def _of_document(file: Path) -> Iterator[HeldOut]:
    found = file.stat()
    report = ReadReport()
    listed = DatasetFile(file.name, file, found.st_size, found.st_mtime_ns)
    for document in read_file(listed, report):
        if file.suffix.lower() not in _LINES:
            yield HeldOut(document.source, document.text)
            continue
        for number, line in enumerate(document.text.splitlines(), 1):
            if line.strip():
                yield HeldOut(f"{file.name}:{number}", line)
    if report.skipped and not report.documents:
        raise Unreadable(report.skipped[0].reason)
