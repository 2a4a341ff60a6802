"""A dataset's documents once more, without some sentences."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import orjson

from forgellm.data.documents import Document, ReadReport, dataset_files, read_file
from forgellm.data.readers import READERS, read_plain
from forgellm.questions.passages import Span


def write_without(folder: Path, target: Path, spans: Iterable[Span]) -> None:
    """Text files keep their names; the text of other files goes into `<name>.txt`, and that of
    files with several documents into `<name>.jsonl`."""
    by_source = {
        source: list(items)
        for source, items in groupby(sorted(spans), key=lambda span: span.source)
    }
    for file in dataset_files(folder).files:
        documents = [
            document._replace(text=_without(document, by_source.get(document.source, [])))
            for document in read_file(file, ReadReport())
        ]
        if not documents:
            continue
        is_one = len(documents) == 1 and documents[0].source == file.name
        is_text = READERS[file.path.suffix.lower()] is read_plain
        path = target / (file.name + ("" if is_text else ".txt" if is_one else ".jsonl"))
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_one:
            path.write_bytes(documents[0].text.encode())
        else:
            path.write_bytes(b"".join(orjson.dumps({"text": d.text}) + b"\n" for d in documents))


def _without(document: Document, spans: list[Span]) -> str:
    """The text without the spans, and without the white space after each."""
    kept, position = [], 0
    for span in sorted(set(spans)):
        kept.append(document.text[position : span.start])
        position = max(position, span.end)
        while document.text[position : position + 1] == " ":
            position += 1
    return "".join([*kept, document.text[position:]])
