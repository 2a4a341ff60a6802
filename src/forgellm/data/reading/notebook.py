"""Jupyter notebooks: what was written in the cells, without what they put out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from forgellm.data.reading.reader import SkipRow, Unreadable, decode


def read_notebook(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    try:
        notebook = orjson.loads(decode(path.read_bytes()))
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"broken JSON at line {error.lineno}") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise Unreadable("no cells in it")
    texts = []
    for number, cell in enumerate(cells, 1):
        source = cell.get("source") if isinstance(cell, dict) else None
        lines = [source] if isinstance(source, str) else source
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            skip("broken cell", number)
            continue
        text = "".join(lines).strip("\n")
        if text.strip():
            is_code = cell.get("cell_type") == "code"
            texts.append(f"```python\n{text}\n```" if is_code else text)
    yield None, "\n\n".join(texts)
