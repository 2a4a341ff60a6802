"""How each type of file becomes documents. A new type is one function and a line in `READERS`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from forgellm.data.kinds import kind_of_row, with_kind
from forgellm.data.reading import csv_rows, json_rows, parquet_rows
from forgellm.data.reading.apart import APART, read_apart
from forgellm.data.reading.json_layouts import TEXT_FIELDS
from forgellm.data.reading.parquet_rows import is_text
from forgellm.data.reading.reader import Reader, SkipRow, Unreadable, decode
from forgellm.data.reading.subtitles import read_subtitles

# Raise it when a change here makes other text of the same file: cached tokens are then made anew.
READER_VERSION = 11

_ROWS_LOOKED_AT = 100


def read_plain(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    yield None, decode(path.read_bytes())


def read_json(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    """The text of each row. JSON in which no row has one is plain text, but where it holds what other
    methods learn."""
    left_out: list[tuple[str, int]] = []
    rows = list(json_rows.read_json(path, lambda *item: left_out.append(item)))
    is_text = not left_out and all(_text_of(row) is None for _, row in rows)
    if is_text and not any(kind_of_row(row) for _, row in rows[:_ROWS_LOOKED_AT]):
        yield None, decode(path.read_bytes())
        return
    for item in left_out:
        skip(*item)
    is_one = len(rows) + len(left_out) == 1
    for number, text in _texts(rows, skip):
        yield None if is_one else number, text


def read_jsonl(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    return _texts(json_rows.read_jsonl(path, skip), skip)


def read_csv(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    rows = csv_rows.read_csv(path, skip)
    ahead = list(islice(rows, _ROWS_LOOKED_AT))
    column = _text_column([row for _, row in ahead]) if ahead else ""
    for number, row in chain(ahead, rows):
        yield number, row[column]


def read_parquet(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    def text_column(schema: Any) -> list[str]:
        texts = [field.name for field in schema if is_text(field.type)]
        column = _named_text_field(texts) or (texts[0] if len(texts) == 1 else None)
        if column is None:
            _, row = next(parquet_rows.read_parquet(path, skip), (0, None))
            raise Unreadable(with_kind("no text column", row))
        return [column]

    for number, row in parquet_rows.read_parquet(path, skip, text_column):
        (text,) = row.values()
        if text is None:
            skip("no text field", number)
        else:
            yield number, text


_PLAIN = (
    ".txt .text .md .markdown .rst .adoc .org .tex .log "
    ".py .pyi .js .mjs .jsx .ts .tsx .c .h .cc .cpp .cxx .hpp .hh .m .mm .cs .java .kt .scala "
    ".go .rs .rb .php .pl .lua .r .jl .swift .dart .hs .ml .ex .exs .erl .clj .lisp .el .vim .zig "
    ".sh .bash .zsh .fish .ps1 .bat .sql .css .scss .less .vue .svelte .xml .yaml .yml .toml "
    ".ini .cfg .conf .properties .proto .graphql .cmake .mk .gradle .tf .diff .patch"
)

READERS: dict[str, Reader] = {
    **dict.fromkeys(_PLAIN.split(), read_plain),
    **dict.fromkeys(APART, read_apart),
    **dict.fromkeys((".srt", ".vtt"), read_subtitles),
    ".json": read_json,
    **dict.fromkeys((".jsonl", ".ndjson"), read_jsonl),
    **dict.fromkeys((".csv", ".tsv"), read_csv),
    ".parquet": read_parquet,
}


def _texts(rows: Iterable[tuple[int, Any]], skip: SkipRow) -> Iterator[tuple[int, str]]:
    for number, row in rows:
        text = _text_of(row)
        if text is None:
            skip(with_kind("no text field", row), number)
        else:
            yield number, text


def _named_text_field(names: Iterable[str]) -> str | None:
    by_lower_name = {name.lower(): name for name in names}
    return next((by_lower_name[field] for field in TEXT_FIELDS if field in by_lower_name), None)


def _text_of(row: Any) -> str | None:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        return None
    field = _named_text_field(name for name, value in row.items() if isinstance(value, str))
    return row[field] if field is not None else None


def _text_column(rows: list[dict[str, str]]) -> str:
    """The column named as text, or else the only one that holds more than numbers."""
    named = _named_text_field(rows[0])
    if named is not None:
        return named
    wordy = [name for name in rows[0] if not all(_is_number(row[name]) for row in rows)]
    if len(wordy) == 1:
        return wordy[0]
    raise Unreadable(with_kind("no text column", rows[0]))


def _is_number(cell: str) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True
