"""A plain-text file too large to be held in memory: one document that comes in parts."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from forgellm.data.documents import DatasetFile, ReadReport, Skipped, missing_error
from forgellm.data.readers import READERS, read_plain
from forgellm.data.reading.patience import read_patiently
from forgellm.data.reading.reader import (
    HEAD_BYTES,
    NOT_TEXT,
    Passing,
    Unreadable,
    encoding_of,
    reason_of,
)

_LARGE_BYTES = 32_000_000
_PART_BYTES = 1 << 20


def is_large_text(file: DatasetFile) -> bool:
    return file.size_bytes > _LARGE_BYTES and READERS[file.path.suffix.lower()] is read_plain


def read_large_text(file: DatasetFile, report: ReadReport) -> Iterator[Iterator[str]]:
    """As `read_file`, but the document in parts. It is read once before, since a file that turns
    out not to be text is left out whole."""
    try:
        text_bytes, is_blank = 0, True
        for part in _patiently(file):
            if "\0" in part:
                raise Unreadable(NOT_TEXT)
            text_bytes += len(part.encode())
            is_blank = is_blank and part.isspace()
    except (Unreadable, UnicodeDecodeError, OSError) as error:
        report.skipped.append(Skipped(file.name, reason_of(error)))
        report.missing += report.skipped[-1:] * isinstance(error, Passing)
        return
    if is_blank:
        report.skipped.append(Skipped(file.name, "empty"))
        return
    report.files += 1
    report.documents += 1
    report.text_bytes += text_bytes
    yield _whole(file)


def _whole(file: DatasetFile) -> Iterator[str]:
    """The parts once more. Raises DataError: the document has begun, and cannot be left out."""
    try:
        yield from _patiently(file)
    except Passing as error:
        raise missing_error(Skipped(file.name, str(error))) from None


def _patiently(file: DatasetFile) -> Iterator[str]:
    return read_patiently(lambda path, skip: _parts(file), file.path, lambda reason, number: None)


def _parts(file: DatasetFile) -> Iterator[str]:
    with file.path.open("rb") as stream:
        raw = stream.read(_PART_BYTES)
        decoder = codecs.getincrementaldecoder(encoding_of(raw[:HEAD_BYTES]))()
        while raw:
            if part := decoder.decode(raw):
                yield part
            raw = stream.read(_PART_BYTES)
        if part := decoder.decode(b"", final=True):
            yield part
