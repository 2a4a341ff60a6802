"""Where in a JSON value its rows are: in a list, in an object around one, or in pandas' layouts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from forgellm.data.reading.reader import Unreadable

TEXT_FIELDS = ("text", "content", "body", "document")
"""Names of the column that holds a document, the first that there is."""

# An object with one of these is a row itself, whatever lists of objects it has.
_OF_A_ROW = frozenset(
    (*TEXT_FIELDS, *"instruction prompt completion question query problem input output".split())
) | {"user", "assistant", "q", "a", "chosen", "rejected", "tools", "functions", "probes"}
_PARTS = frozenset(("train", "training", "validation", "valid", "val", "dev", "test", "eval"))


def rows_in(value: Any) -> list[Any]:
    """The rows of a JSON value; the value itself where it is one. Raises Unreadable for rows that
    are said to be for training and for testing in one file."""
    if isinstance(value, list):
        return [value] if _is_turns(value) else value
    if not isinstance(value, dict) or not value:
        return [value]
    found = _of_columns(value)
    if found is None and not _OF_A_ROW & _lower(value):
        found = _of_wrapper(value)
    return [value] if found is None else found


def _of_wrapper(value: dict[str, Any]) -> list[Any] | None:
    """The only value that is a list of objects, or whose keys number objects."""
    lists = {key: rows for key, rows in value.items() if _is_objects(rows)}
    if any(_is_turns(rows) for rows in lists.values()):
        return None
    if len(lists) > 1 and _lower(lists) <= _PARTS:
        raise Unreadable(f"several lists of rows ({', '.join(lists)}): give each a file of its own")
    if len(lists) == 1:
        return list(*lists.values())
    if _is_objects(list(value.values())) and all(key.isdecimal() for key in value):
        return list(value.values())  # pandas: orient="index"
    return None


def _of_columns(value: dict[str, Any]) -> list[Any] | None:
    """The rows of an object that holds columns; None where it is no such object."""
    names, cells = value.get("columns"), value.get("data")
    if (
        isinstance(names, list) and isinstance(cells, list) and _is_cells(cells, len(names))
    ):  # pandas: orient="split"
        return [dict(zip(map(str, names), row, strict=True)) for row in cells]
    columns = list(value.values())
    if _is_objects(columns):  # pandas: orient="columns"
        keys = columns[0].keys()
        if keys and all(key.isdecimal() for key in keys):
            if any(column.keys() != keys for column in columns):
                return None
            return [{name: column[key] for name, column in value.items()} for key in keys]
    if all(isinstance(column, list) and column and not _is_turns(column) for column in columns):
        length = len(columns[0])  # a list for each column
        is_named = len(columns) > 1 or bool(set(TEXT_FIELDS) & _lower(value))
        if is_named and not _is_objects(columns[0]) and all(len(c) == length for c in columns):
            return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    return None


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, dict) for i in value)


def _is_turns(value: list[Any]) -> bool:
    """Whether the list is a conversation."""
    return _is_objects(value) and bool({"role", "from"} & value[0].keys())


def _is_cells(value: list[Any], length: int) -> bool:
    return all(isinstance(row, list) and len(row) == length for row in value)


def _lower(names: Iterable[str]) -> set[str]:
    return {name.lower() for name in names}
