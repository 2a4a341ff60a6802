"""The readers of files that hold rows, the same for documents and conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from forgellm.data.reading.csv_rows import read_csv
from forgellm.data.reading.json_rows import read_json, read_jsonl
from forgellm.data.reading.parquet_rows import read_parquet
from forgellm.data.reading.reader import SkipRow

RowReader = Callable[[Path, SkipRow], Iterator[tuple[int, Any]]]
"""Yields (line or row number, row as it is written). Raises Unreadable, UnicodeDecodeError, OSError."""

ROW_READERS: dict[str, RowReader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
