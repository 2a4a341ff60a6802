"""The rows of files that hold conversations or pairs: JSON, JSON lines, tables."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from forgellm.data.documents import Skipped, dataset_files
from forgellm.data.left_out import nothing_to_train
from forgellm.data.reading.reader import SkipRow, Unreadable, decode
from forgellm.schema.recipe import Recipe

Rows = Iterator[tuple[int, Any]]


def read_jsonl(path: Path, skip: SkipRow) -> Rows:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not text:
                continue
            try:
                yield number, orjson.loads(text)
            except orjson.JSONDecodeError:
                skip("broken JSON", number)


def read_json(path: Path, skip: SkipRow) -> Rows:
    try:
        value = orjson.loads(decode(path.read_bytes()))
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"broken JSON at line {error.lineno}") from None
    is_one = not isinstance(value, list) or (
        value and isinstance(value[0], dict) and _is_turn(value[0])
    )
    yield from enumerate([value] if is_one else value, 1)


def _is_turn(item: dict[str, Any]) -> bool:
    return bool({"role", "from"} & item.keys())


def read_csv(path: Path, skip: SkipRow) -> Rows:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        delimiter = max(",;\t", key=lines.readline().count)
        lines.seek(0)
        rows = csv.DictReader(lines, delimiter=delimiter)
        try:
            yield from enumerate(rows, 1)
        except csv.Error as error:
            raise Unreadable(f"broken CSV at line {rows.line_num}: {error}") from None


def read_parquet(path: Path, skip: SkipRow) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        raise Unreadable(f"broken Parquet: {str(error)[:200]}") from None


ROW_READERS: dict[str, Callable[[Path, SkipRow], Rows]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}


def require_row_files(dataset: Path, recipe: Recipe) -> None:
    """Raises DataError if no file of the dataset can hold the recipe's rows; none is opened."""
    listing = dataset_files(dataset)
    if not any(file.path.suffix.lower() in ROW_READERS for file in listing.files):
        nothing = "holds no pairs" if recipe.learns_preferences else "holds no conversations"
        others = [Skipped(file.name, nothing) for file in listing.files]
        raise nothing_to_train(recipe, [*listing.skipped, *others], ROW_READERS)
