"""The rows of JSON files, however the tool that wrote them lays them out.

Read are lists, JSON lines (also in a `.json`), objects one after another, pandas' layouts, and
objects around the list of rows. NaN and Infinity, which Python writes, are null.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from forgellm.data.reading.json_layouts import rows_in
from forgellm.data.reading.reader import SkipRow, Unreadable, decode, is_decoded, open_rows

Rows = Iterator[tuple[int, Any]]

_WHITE = re.compile(r"\s*")
_LONG_INTEGER = re.compile(r"[0-9]{19}")  # orjson rounds what does not fit 64 bits
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_BROKEN = "broken JSON"
_NO_HALF = "half of a character in it (a lone surrogate)"
_NO_NUL = "a NUL character in it"


def read_jsonl(path: Path, skip: SkipRow) -> Rows:
    """(line number, value) of each line, or (its number, value) of values over several lines."""
    first, second = _first_lines(path)
    is_whole = _is_open(first) and not _is_container(second)
    return _whole(path, skip) if is_whole else _lines(path, skip)


def read_json(path: Path, skip: SkipRow) -> Rows:
    """(number, row) of the rows of one JSON value, or of JSON lines under another name."""
    first, second = _first_lines(path)
    is_lines = second and (_is_container(first) or (_is_container(second) and not _is_open(first)))
    return _lines(path, skip) if is_lines else _whole(path, skip)


def json_value(text: str) -> Any:
    """The value as it was written, integers of any length exactly; NaN and Infinity are None.

    Raises ValueError.
    """
    if _LONG_INTEGER.search(text) is None:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def json_line(value: Any) -> bytes:
    """The inverse of `json_value`, without a line end. What JSON does not know is a text."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # an integer beyond 64 bits, or half of a character
        return json.dumps(value, default=str, ensure_ascii=not _is_clean(value)).encode()


def _lines(path: Path, skip: SkipRow) -> Rows:
    with open_rows(path, newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            text = line.strip("\ufeff \t\r\n")
            if not text:
                continue
            if not is_decoded(text):
                skip("not UTF-8", number)
                continue
            try:
                value = json_value(text)
            except ValueError:
                skip(_NO_NUL if "\0" in text else _BROKEN, number)
                continue
            if _SUSPECT.search(text) and (fault := _fault_of(value)):
                skip(fault, number)
            else:
                yield number, value


def _whole(path: Path, skip: SkipRow) -> Rows:
    text = decode(path.read_bytes())
    is_suspect = _SUSPECT.search(text) is not None
    for number, row in enumerate(_rows(text), 1):
        if is_suspect and (fault := _fault_of(row)):
            skip(fault, number)
        else:
            yield number, row


def _rows(text: str) -> Iterator[Any]:
    try:
        value = json_value(text)
    except ValueError:
        yield from _one_after_another(text)
    else:
        yield from rows_in(value)


def _one_after_another(text: str) -> Iterator[Any]:
    position = _end_of_white(text, 0)
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise Unreadable(_told(text, error)) from None
        except (ValueError, RecursionError):
            raise Unreadable(f"{_BROKEN}: nested too deep, or a number too long") from None
        yield from rows_in(value)
        position = _end_of_white(text, position)


def _end_of_white(text: str, position: int) -> int:
    found = _WHITE.match(text, position)
    return found.end() if found else position


def _told(text: str, error: json.JSONDecodeError) -> str:
    """Where the error is, and what it is where that is one that people and tools often make."""
    at = text[error.pos : error.pos + 2]
    before = text[: error.pos].rstrip()[-1:]
    line = error.lineno
    if at in ("//", "/*") or at[:1] == "#":
        hint = "comments are no part of JSON"
    elif at[:1] in ("]", "}", ",") and (before == "," or "trailing comma" in error.msg):
        line -= text[: error.pos].removesuffix(text[: error.pos].rstrip()).count("\n")
        hint = "a comma that nothing follows"
    elif at[:1] == "'":
        hint = "texts stand in double quotes"
    elif error.msg.startswith("Invalid control character"):
        hint = r"a line end or tab inside a text is written \n or \t"
    elif error.pos >= len(text.rstrip()):
        hint = "it ends too early"
    else:
        return f"{_BROKEN} at line {line}"
    return f"{_BROKEN} at line {line}: {hint}"


def _first_lines(path: Path) -> tuple[str, str]:
    """The first two lines that are not blank; empty where there are none."""
    with open_rows(path, newline="\n") as lines:
        found = (text for line in lines if (text := line.strip("\ufeff \t\r\n")))
        first, second = islice([*islice(found, 2), "", ""], 2)
    return first, second


def _is_container(line: str) -> bool:
    try:
        return isinstance(json_value(line), (dict, list))
    except ValueError:
        return False


def _is_open(line: str) -> bool:
    """Whether an object or list begins in the line, and goes on in the next."""
    try:
        _DECODER.decode(line)
    except json.JSONDecodeError as error:
        return line[:1] in ("{", "[") and error.pos >= len(line)
    except (ValueError, RecursionError):
        pass
    return False


def _fault_of(value: Any) -> str | None:
    for text in _texts(value):
        if not is_decoded(text):
            return _NO_HALF
        if "\0" in text:
            return _NO_NUL
    return None


def _is_clean(value: Any) -> bool:
    return all(is_decoded(text) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _number(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


_DECODER = json.JSONDecoder(parse_float=_number, parse_constant=lambda _: None)
