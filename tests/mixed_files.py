"""A folder of some 300 small files, of every type and with every fault, and what must become of each.

Documents, conversations and pairs of answers lie side by side, as people keep them.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_shapes import CONVERSATIONS, PREFERENCES
from paper import docx, epub, odt, pdf

WORDS = "mill river sack miller boat grain wheel stone winter tide lamp keeper barrel rope".split()
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be")
TEMPLATE = (  # a chat template that shows tools and calls of them, so that no row is refused for it
    "{{ tools|tojson if tools }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content or '' }}{{ message.tool_calls|tojson if message.tool_calls }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HOSTILE_NAMES = ("with space", "ünïcode", "日本", "semi;colon", "new'quote", "UPPER", "100 %")


@dataclass(frozen=True)
class MixedFile:
    """A file, and what each method must make of it.

    Attributes:
        documents, conversations, pairs: how many cpt, ift and dpo learn of it.
        rows: how many rows it has, all of which are learned or told; None for what holds no rows.
        reason: part of why it is left out whole, by a method that opens it.
        is_of_system: whether it is no part of the dataset.
    """

    name: str
    content: bytes
    documents: int = 0
    conversations: int = 0
    pairs: int = 0
    rows: int | None = None
    reason: str = ""
    is_of_system: bool = False

    def learned_by(self, method: str) -> int:
        return {"cpt": self.documents, "ift": self.conversations, "dpo": self.pairs}[method]


def mixed_files(seed: int = 0) -> list[MixedFile]:
    rng = random.Random(seed)
    files = [*_plain(rng), *_parsed(rng), *_rows(rng), *_shapes(), *_broken(rng), *_of_system()]
    assert len({file.name for file in files}) == len(files)
    return files


def write_mixed_files(folder: Path, seed: int = 0) -> list[MixedFile]:
    files = mixed_files(seed)
    for file in files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
    return files


def _sentence(rng: random.Random) -> str:
    return f"The {rng.choice(WORDS)} stands {rng.randrange(90)} steps from the {rng.choice(WORDS)}."


def _text(rng: random.Random) -> str:
    return "\n\n".join(" ".join(_sentence(rng) for _ in range(3)) for _ in range(2))


def _plain(rng: random.Random) -> Iterator[MixedFile]:
    for number, suffix in enumerate(
        ("txt", "md", "rst", "tex", "py", "c", "xml", "yaml", "toml") * 10
    ):
        yield MixedFile(f"plain/{number:02d}.{suffix}", _text(rng).encode(), documents=1)
    for encoding in ENCODINGS:
        yield MixedFile(f"encodings/{encoding}.txt", (_text(rng) + " Größe").encode(encoding), 1)
    for name in HOSTILE_NAMES:
        yield MixedFile(f"names/{name}.txt", _text(rng).encode(), documents=1)
    for depth in range(1, 8):
        yield MixedFile("/".join(["deep"] * depth) + f"/{depth}.md", _text(rng).encode(), 1)


def _parsed(rng: random.Random) -> Iterator[MixedFile]:
    makers: dict[str, Callable[[], bytes]] = {
        "pdf": lambda: pdf([_sentence(rng), _sentence(rng)]),
        "docx": lambda: docx([_sentence(rng), _sentence(rng)]),
        "odt": lambda: odt(f"<text:p>{_sentence(rng)}</text:p>"),
        "epub": lambda: epub([f"<p>{_sentence(rng)}</p>"]),
        "html": lambda: f"<nav>Home</nav><main><p>{_sentence(rng)}</p></main>".encode(),
        "xhtml": lambda: f"<html><body><p>{_sentence(rng)}</p></body></html>".encode(),
        "eml": lambda: f"Subject: Mill\r\n\r\n{_sentence(rng)}".encode(),
        "ipynb": lambda: json.dumps(
            {"cells": [{"cell_type": "markdown", "source": [_sentence(rng)]}]}
        ).encode(),
        "srt": lambda: f"1\n00:00:01,000 --> 00:00:02,000\n{_sentence(rng)}\n".encode(),
        "vtt": lambda: f"WEBVTT\n\n00:01.000 --> 00:02.000\n{_sentence(rng)}\n".encode(),
    }
    for suffix, make in makers.items():
        for number in range(6):
            yield MixedFile(f"parsed/{number}.{suffix}", make(), documents=1)
    for number in range(3):
        message = "From a@b Thu Jan  1 00:00:00 2026\nSubject: Mill\n\n{}\n\n"
        box = "".join(message.format(_sentence(rng)) for _ in range(number + 1))
        yield MixedFile(f"parsed/{number}.mbox", box.encode(), documents=number + 1)


def _rows(rng: random.Random) -> Iterator[MixedFile]:
    """Tables and JSON as programs write them, in every encoding."""
    texts = [{"text": _sentence(rng), "id": number} for number in range(5)]
    talks = [{"question": _sentence(rng), "answer": _sentence(rng)} for _ in range(4)]
    pairs = [
        {"prompt": _sentence(rng), "chosen": _sentence(rng), "rejected": "No."} for _ in range(3)
    ]
    kinds: tuple[tuple[str, list[dict[str, Any]], dict[str, int]], ...] = (
        ("texts", texts, {"documents": 5}),
        ("talks", talks, {"conversations": 4}),
        ("pairs", pairs, {"pairs": 3}),
    )
    for kind, rows, counts in kinds:
        for encoding in ENCODINGS:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            yield MixedFile(
                f"rows/{kind}-{encoding}.jsonl", lines.encode(encoding), **counts, rows=len(rows)
            )
        for delimiter, suffix in ((",", "csv"), (";", "csv"), ("\t", "tsv")):
            out = io.StringIO()
            writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
            name = f"rows/{kind}-{'semicolon' if delimiter == ';' else 'plain'}.{suffix}"
            if kind == "texts":
                yield MixedFile(name, out.getvalue().encode(), **counts, rows=len(rows))
            else:  # without a column of texts, cpt leaves the whole table out
                yield MixedFile(name, out.getvalue().encode(), **counts, rows=len(rows))
        layouts = {"list": rows, "wrapped": {"version": "1", "data": rows}}
        for name, value in layouts.items():
            content = json.dumps(value).encode()
            yield MixedFile(f"rows/{kind}-{name}.json", content, **counts, rows=len(rows))
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        yield MixedFile(f"rows/{kind}.parquet", buffer.getvalue(), **counts, rows=len(rows))
    mixed = [*texts[:2], *talks[:2], *pairs[:2]]
    lines = "".join(json.dumps(row) + "\n" for row in mixed)
    yield MixedFile("rows/all-kinds.jsonl", lines.encode(), 2, 2, 2, rows=6)


def _shapes() -> Iterator[MixedFile]:
    """A file for each known dataset. Rows with a text are documents, too."""
    for number, sample in enumerate(CONVERSATIONS.values()):
        row = sample.row
        is_text = isinstance(row, dict) and any(
            str(name).lower() in ("text", "content", "body", "document")
            and isinstance(row[name], str)
            for name in row
        )
        content = json.dumps(row).encode() + b"\n"
        yield MixedFile(f"shapes/{number:02d}.jsonl", content, int(is_text), 1, rows=1)
    for number, pair in enumerate(PREFERENCES.values()):
        content = json.dumps(pair.row).encode() + b"\n"
        both = isinstance(pair.row, dict) and "messages" in pair.row  # and so a conversation, too
        yield MixedFile(f"preferences/{number:02d}.jsonl", content, 0, int(both), 1, rows=1)


def _broken(rng: random.Random) -> Iterator[MixedFile]:
    good = _sentence(rng)
    whole: dict[str, tuple[bytes, str]] = {
        "latin.txt": ("Fässer".encode("latin-1"), "save it as UTF-8"),
        "binary.txt": (bytes(range(256)) * 4, "NUL"),
        "empty.txt": (b"", "empty"),
        "blank.md": (b" \n\t\n", "empty"),
        "broken.pdf": (b"%PDF-1.4 and no more", "broken PDF"),
        "scanned.pdf": (pdf([""]), "scanned"),
        "broken.docx": (b"PK not a zip", "broken DOCX"),
        "hollow.odt": (odt("").replace(b"content.xml", b"contend.xml"), "lacks"),
        "broken.epub": (b"no book", "broken EPUB"),
        "broken.ipynb": (b'{"cells": [', "broken JSON"),
        "picture.png": (b"\x89PNG\r\n", "unsupported type"),
        "slides.pptx": (b"PK", "unsupported type"),
        "noending": (good.encode(), "unsupported type"),
    }
    for name, (content, reason) in whole.items():
        yield MixedFile(f"broken/{name}", content, reason=reason)
    for suffix in ("json", "parquet"):
        yield MixedFile(f"broken/rows.{suffix}", b'{"a": [1', reason="broken", rows=0)
    lines = [
        json.dumps({"text": good}).encode(),
        b'{"text": "cut off',
        b'{"text": "F\xe4sser"}',
        b'{"text": "half \\ud83d"}',
        b'{"text": null}',
        b"17",
        json.dumps({"question": "Why?", "answer": "So."}).encode(),
        json.dumps({"question": "Why?", "answer": None}).encode(),
        json.dumps({"question": "Why?", "answer": ["a", "b"]}).encode(),
        json.dumps({"prompt": "Why?", "chosen": 0, "rejected": 1}).encode(),
        json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "No."}).encode(),
    ]
    yield MixedFile("broken/rows.jsonl", b"\n".join(lines), 1, 1, 1, rows=len(lines))
    table = f"text,n\n{good},1\n{good},2,3\n{good}\n\n{good},4\n"
    yield MixedFile("broken/ragged.csv", table.encode(), documents=2, rows=4)


def _of_system() -> Iterator[MixedFile]:
    names = (
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "~$letter.docx",
        "__MACOSX/._a.txt",
        ".git/x.txt",
    )
    for folder in ("", "plain/", "deep/deep/"):
        for name in names:
            yield MixedFile(folder + name, b"what a system lays down", is_of_system=True)
