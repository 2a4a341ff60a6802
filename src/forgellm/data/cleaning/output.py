"""The files of a prepared dataset: text as text, rows as JSON lines, named after the originals."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import IO

from forgellm.data.cleaning.items import Item
from forgellm.data.documents import MANIFEST_NAME
from forgellm.data.readers import READERS, read_plain
from forgellm.data.reading.json_rows import json_line


class Output:
    """Takes the items of one original file after another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: set[str] = {MANIFEST_NAME}
        self._file: str | None = None
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, item: Item) -> None:
        is_rows = item.row is not None or item.number is not None
        if item.file != self._file or self._stream is None:
            self._close()
            self._file = item.file
            self._stream = self._open(item.file, is_rows)
        if item.row is not None:
            line = json_line(item.row)
        elif is_rows:
            line = json_line({"text": item.text, "source": item.source})
        else:
            self._stream.write(item.text.encode())
            return
        self._stream.write(line + b"\n")

    def _open(self, file: str, is_rows: bool) -> IO[bytes]:
        path = PurePosixPath(file)
        suffix = path.suffix.lower()
        stays = suffix == ".jsonl" if is_rows else READERS.get(suffix) is read_plain
        name = file if stays else f"{file}{'.jsonl' if is_rows else '.txt'}"
        number = 2
        while name in self._names:  # a.csv beside a file that is named a.csv.jsonl already
            name = f"{path.with_suffix('')}-{number}{PurePosixPath(name).suffix}"
            number += 1
        self._names.add(name)
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.open("xb")

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
