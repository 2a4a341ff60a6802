"""Jupyter notebooks: what was written in the cells, without what they put out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from forgellm.data.reading.reader import SkipRow, Unreadable, decode

# A picture laid into the text as letters.
_PICTURE = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,[A-Za-z0-9+/=]{100,}")


def read_notebook(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    try:
        notebook = orjson.loads(decode(path.read_bytes()))
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"broken JSON at line {error.lineno}") from None
    cells = _cells(notebook) if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise Unreadable("no cells in it")
    language = _language(notebook)
    texts = []
    for number, cell in enumerate(cells, 1):
        source = cell.get("source", cell.get("input")) if isinstance(cell, dict) else None
        lines = [source] if isinstance(source, str) else source
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            skip("broken cell", number)
            continue
        text = _PICTURE.sub("", "".join(lines)).strip("\n")
        if text.strip():
            is_code = cell.get("cell_type") == "code"
            texts.append(f"```{language}\n{text}\n```" if is_code else text)
    yield None, "\n\n".join(texts)


def _cells(notebook: dict[str, Any]) -> Any:
    """Version 3 of the format has worksheets around them."""
    sheets = notebook.get("worksheets")
    if "cells" in notebook or not isinstance(sheets, list):
        return notebook.get("cells")
    found = [sheet.get("cells") for sheet in sheets if isinstance(sheet, dict)]
    return [cell for cells in found if isinstance(cells, list) for cell in cells]


def _language(notebook: dict[str, Any]) -> str:
    metadata = notebook.get("metadata")
    for part, key in (("language_info", "name"), ("kernelspec", "language")):
        named = metadata.get(part) if isinstance(metadata, dict) else None
        if isinstance(named, dict) and isinstance(named.get(key), str):
            return str(named[key])
    return "python"
