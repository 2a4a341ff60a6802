"""How each type of file becomes documents. A new type is one function and a line in `READERS`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import orjson

from forgellm.data.reading.apart import APART, read_apart
from forgellm.data.reading.reader import Reader, SkipRow, Unreadable, decode, encoding_of
from forgellm.data.reading.subtitles import read_subtitles

# Raise it when a change here makes other text of the same file: cached tokens are then made anew.
READER_VERSION = 10

TEXT_FIELDS = ("text", "content", "body", "document")
_ROWS_LOOKED_AT = 100
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


def read_plain(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    yield None, decode(path.read_bytes())


def read_json(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    """A list of texts or of objects with a text, or one such object; any other JSON is plain text."""
    text = decode(path.read_bytes())
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"broken JSON at line {error.lineno}") from None
    rows = value if isinstance(value, list) else [value] if isinstance(value, dict) else []
    texts = [_text_of(row) for row in rows]
    if not any(found is not None for found in texts):
        yield None, text
        return
    for number, found in enumerate(texts, 1):
        if found is None:
            skip("no text field", number)
        else:
            yield number if len(rows) > 1 else None, found


def read_jsonl(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    with _open_text(path, newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = _text_of(orjson.loads(line))
            except orjson.JSONDecodeError:
                skip("broken JSON", number)
                continue
            if text is None:
                skip("no text field", number)
            else:
                yield number, text


def read_csv(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    csv.field_size_limit(2**31 - 1)
    with _open_text(path, newline="") as lines:
        delimiter = max(",;\t", key=lines.readline().count)
        lines.seek(0)
        rows = csv.reader(lines, delimiter=delimiter)
        try:
            header = next(rows, [])
            ahead = list(islice(rows, _ROWS_LOOKED_AT))
            column = _text_column(header, ahead)
            for number, row in enumerate(chain(ahead, rows), 1):
                if len(row) <= column:
                    skip("no text field", number)
                elif _NOT_UTF8.search(row[column]):
                    skip("not UTF-8", number)
                else:
                    yield number, row[column]
        except csv.Error as error:
            raise Unreadable(f"broken CSV at line {rows.line_num}: {error}") from None


def read_parquet(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
            column = _named_text_field(texts) or (texts[0] if len(texts) == 1 else None)
            if column is None:
                raise Unreadable("no text column")
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    if value.is_valid:
                        yield number, value.as_py()
                    else:
                        skip("no text field", number)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise Unreadable(f"broken Parquet: {str(error)[:200]}") from None


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


def _open_text(path: Path, newline: str) -> IO[str]:
    with path.open("rb") as file:
        encoding = encoding_of(file.read(2))
    # Bytes that are not UTF-8 become lone surrogates, so that they cost their row, not the file.
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    return path.open(encoding=encoding, errors=errors, newline=newline)


def _named_text_field(names: Iterable[str]) -> str | None:
    by_lower_name = {name.lower(): name for name in names}
    return next((by_lower_name[field] for field in TEXT_FIELDS if field in by_lower_name), None)


def _is_text(arrow_type: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    return bool(types.is_string(arrow_type) or types.is_large_string(arrow_type))


def _text_of(row: Any) -> str | None:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        return None
    field = _named_text_field(name for name, value in row.items() if isinstance(value, str))
    return row[field] if field is not None else None


def _text_column(header: list[str], rows: list[list[str]]) -> int:
    """The column named as text, or else the only one that holds more than numbers."""
    named = _named_text_field(header)
    if named is not None:
        return header.index(named)
    wordy = [
        index
        for index in range(len(header))
        if not all(_is_number(row[index]) for row in rows if index < len(row))
    ]
    if len(wordy) == 1:
        return wordy[0]
    raise Unreadable("no text column")


def _is_number(cell: str) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True
