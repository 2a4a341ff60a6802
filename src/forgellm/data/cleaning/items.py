"""The documents, conversations or pairs of a dataset, one at a time, and what could not be read of it."""

from __future__ import annotations

import errno
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from forgellm.data.chat.pairs import pair_of
from forgellm.data.chat.rows import RowRefused, conversation_of
from forgellm.data.chat.template import Turn
from forgellm.data.documents import DatasetFile, ReadReport, Skipped, dataset_files, read_file
from forgellm.data.kinds import OF_DOCUMENTS, kind_of_row
from forgellm.data.left_out import as_lines, in_words
from forgellm.data.reading.json_rows import json_line, json_value
from forgellm.data.reading.patience import read_patiently
from forgellm.data.reading.reader import Unreadable, reason_of
from forgellm.data.reading.row_readers import ROW_READERS
from forgellm.errors import DataError, DiskFull
from forgellm.schema.preparation import DataKind

OnProgress = Callable[[float, str], None]
"""Called with how much is done, from 0 to 1, and with what is being done."""

Columns = Mapping[Any, str]

_FILES_LOOKED_AT = 50
_ROWS_LOOKED_AT = 20
_TOLD_EVERY = 64
_MAX_DEPTH = 100  # what goes through a row calls itself for each level


class Item(NamedTuple):
    """A document, a conversation, or a pair of answers.

    Attributes:
        number: which row, line or message of the file, where it holds several.
        text: the document, or what is said, a line for each turn; of a pair both answers.
        row: as it was read, of conversations and pairs alone.
    """

    file: str
    number: int | None
    text: str
    row: Any = None

    @property
    def source(self) -> str:
        return self.file if self.number is None else f"{self.file}:{self.number}"

    @property
    def texts(self) -> list[str]:
        """The document, or each text of the row."""
        return [self.text] if self.row is None else list(_strings(self.row))


@dataclass
class Reading:
    """A dataset folder as it is gone through.

    Attributes:
        columns: which column of a row holds what, where names are unusual; see `conversation_of`
            and `pair_of`.
        report: filled as items are read.
    """

    files: list[DatasetFile]
    kind: DataKind
    columns: Columns | None = None
    report: ReadReport = field(default_factory=ReadReport)

    @classmethod
    def of(cls, folder: Path, kind: DataKind | None, columns: Columns | None = None) -> Reading:
        """`kind` None finds out what the folder holds."""
        listing = dataset_files(folder)
        found = kind or (_kind_named(columns) if columns else _kind_of(listing.files))
        return cls(listing.files, found, columns, ReadReport(skipped=list(listing.skipped)))

    def items(self, on_progress: OnProgress, task: str) -> Iterator[Item]:
        """Every item in a fixed order. What cannot be read is noted in the report, never raised."""
        total = sum(file.size_bytes for file in self.files) or 1
        done = 0
        for file in self.files:
            for number, item in enumerate(self._read(file)):
                if number % _TOLD_EVERY == 0:
                    on_progress(done / total, task)
                yield item
            done += file.size_bytes
            on_progress(done / total, task)

    def _read(self, file: DatasetFile) -> Iterator[Item]:
        if self.kind == "documents":
            return _documents(file, self.report)
        return _rows(file, self.kind, self.report, self.columns)

    def require_items(self, count: int) -> None:
        """Raises DataError if there were none."""
        if count == 0:
            told = in_words(self.report.skipped)
            raise DataError(
                f"No {self.kind} were found in the dataset"
                + (f". Left out: {told}" if told else ""),
                suggestion="See what was skipped: forgellm data inspect NAME",
                details={"skipped": as_lines(self.report.skipped)},
            )


class Spool:
    """Items on the disk for as long as the work lasts, so that a file is parsed once.

    Raises DiskFull.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()
        self._count = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def add(self, item: Item) -> None:
        try:
            self._file.write(json_line([*item]) + b"\n")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    "The disk for temporary files is full",
                    suggestion="Free disk space, or point TMPDIR to another disk.",
                ) from None
            raise
        self._count += 1

    def items(self, on_progress: OnProgress, task: str) -> Iterator[Item]:
        self._file.seek(0)
        for number, line in enumerate(self._file):
            if number % _TOLD_EVERY == 0:
                on_progress(number / self._count, task)
            yield Item(*json_value(line.decode()))


def with_texts(row: Any, change: Callable[[str], str]) -> Any:
    """`row` with each of its texts changed, in the order of `Item.texts`."""
    if isinstance(row, str):
        return change(row)
    if isinstance(row, dict):
        return {key: with_texts(value, change) for key, value in row.items()}
    if isinstance(row, list):
        return [with_texts(value, change) for value in row]
    return row


def _strings(row: Any) -> Iterator[str]:
    if isinstance(row, str):
        yield row
    elif isinstance(row, (dict, list)):
        for value in row.values() if isinstance(row, dict) else row:
            yield from _strings(value)


def _kind_of(files: Sequence[DatasetFile]) -> DataKind:
    """Pairs or conversations, if one of the first rows of some file is one and not a document."""
    rows = [file for file in files if file.path.suffix.lower() in ROW_READERS]
    for file in rows[:_FILES_LOOKED_AT]:
        reader = ROW_READERS[file.path.suffix.lower()]
        found = read_patiently(reader, file.path, lambda reason, number: None)
        try:
            for _, row in islice(found, _ROWS_LOOKED_AT):
                kind = kind_of_row(row)
                if kind in ("pairs", "conversations"):
                    return kind
        except (Unreadable, UnicodeDecodeError, OSError):
            continue
    return "documents"


def _kind_named(columns: Columns) -> DataKind:
    return "pairs" if {"chosen", "rejected"} & columns.keys() else "conversations"


def _documents(file: DatasetFile, report: ReadReport) -> Iterator[Item]:
    for document in read_file(file, report):
        number = document.source[len(file.name) + 1 :]
        yield Item(file.name, int(number) if number else None, document.text)


def _rows(
    file: DatasetFile, kind: DataKind, report: ReadReport, columns: Columns | None
) -> Iterator[Item]:
    """The conversations or pairs of a file."""
    reader = ROW_READERS.get(file.path.suffix.lower())
    if reader is None:
        report.skipped.append(Skipped(file.name, OF_DOCUMENTS))
        return
    skipped: dict[str, tuple[int, int]] = {}  # reason -> (first row, how many)

    def skip(reason: str, number: int) -> None:
        first, count = skipped.get(reason, (number, 0))
        skipped[reason] = (first, count + 1)

    before = report.documents
    notes: Counter[str] = Counter()
    try:
        for number, row in read_patiently(reader, file.path, skip):
            if _depth(row, _MAX_DEPTH + 1) > _MAX_DEPTH:
                skip("nested too deeply", number)
                continue
            try:
                text, row_notes = _PARSERS[kind](row, columns)
            except RowRefused as error:
                skip(str(error), number)
                continue
            notes.update(row_notes)
            report.documents += 1
            report.text_bytes += len(text.encode())
            yield Item(file.name, number, text, row)
    except (Unreadable, UnicodeDecodeError, OSError) as error:
        report.skipped.append(Skipped(file.name, reason_of(error)))
    else:
        if not skipped and report.documents == before:
            report.skipped.append(Skipped(file.name, "empty"))
    for reason, (first, count) in skipped.items():
        report.skipped.append(Skipped(file.name, f"{reason}, first at {first}", count))
    report.notes += [Skipped(file.name, note, count) for note, count in notes.items()]
    report.files += report.documents > before


def _depth(value: Any, limit: int) -> int:
    """How many lists and objects are in each other, looked at down to `limit` of them."""
    if not isinstance(value, (dict, list)) or not limit:
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(item, limit - 1) for item in inner), default=0)


def _conversation(row: Any, columns: Columns | None) -> tuple[str, Sequence[str]]:
    found = conversation_of(row, columns)
    return _said(found.turns), found.notes


def _pair(row: Any, columns: Columns | None) -> tuple[str, Sequence[str]]:
    """What both answer, then the chosen answer, then the rejected one."""
    found = pair_of(row, columns)
    turns = found.chosen.turns + found.rejected.turns[found.num_shared :]
    notes = dict.fromkeys((*found.notes, *found.chosen.notes, *found.rejected.notes))
    return _said(turns), tuple(notes)


# What a row of a kind says and what of it is not used. Pairs first: some come with a conversation.
_PARSERS: dict[DataKind, Callable[[Any, Columns | None], tuple[str, Sequence[str]]]] = {
    "pairs": _pair,
    "conversations": _conversation,
}


def _said(turns: Sequence[Turn]) -> str:
    """What is said, and which tools are called."""
    lines = []
    for turn in turns:
        lines.append(str(turn.get("content") or ""))
        if calls := turn.get("tool_calls"):
            lines.append(orjson.dumps(calls, default=str).decode())
    return "\n".join(line for line in lines if line)
