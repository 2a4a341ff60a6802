"""The rows of Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from forgellm.data.reading.reader import SkipRow, Unreadable


def read_parquet(
    path: Path, skip: SkipRow, choose: Callable[[Any], list[str] | None] = lambda schema: None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, value by column) of each row. `choose` gets the Arrow schema and says which columns
    are read, None for all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = choose(file.schema_arrow)
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for row in _rows(batch):
                    number += 1
                    if row is None:
                        skip("not UTF-8", number)
                    else:
                        yield number, row
    except (pa.ArrowException, ValueError) as error:
        raise Unreadable(f"broken Parquet: {str(error)[:200]}") from None


def is_text(arrow_type: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    kinds = types.is_string, types.is_large_string, types.is_string_view
    return any(is_one(arrow_type) for is_one in kinds)


def _rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    """None for a row with a text that is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for place in range(len(batch)):
            try:
                yield batch.slice(place, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None
