"""Documents as passages and sentences, each known by where it stands."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from forgellm.data.documents import Document, ReadReport, iter_documents

MAX_PASSAGES = 20_000
_PASSAGE_CHARACTERS = 250
_SHORTEST_PASSAGE = 80
_LONGEST_SENTENCE = 600
# A blank line, the end of a heading or list item, or white space after a full stop and before what
# may begin a sentence. Full stops of abbreviations divide too, which costs a sentence, no more.
_BORDER = re.compile(
    r"\n\s*\n|\n(?=[ \t]*(?:[-*+#|>]|\d+[.)] ))"
    r"|(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[^\W_a-z])|(?<=[。！？])"
)
_HEADING = re.compile(r"[ \t]*#{1,6} [^\n]*(?=\n)")


class Span(NamedTuple):
    """Characters `start` to `end` of the document `source`, and the text there."""

    source: str
    start: int
    end: int
    text: str

    def as_json(self) -> dict[str, Any]:
        return {"file": self.source, "start": self.start, "end": self.end, "text": self.text}


def sentence_spans(document: Document) -> Iterator[Span]:
    """The sentences of a document in order, without the white space around them."""
    text, start = document.text, 0
    while start < len(text):
        limit = min(start + _LONGEST_SENTENCE, len(text))
        found = _HEADING.match(text, start, limit) or _BORDER.search(text, start, limit)
        end = max(found.end(), start + 1) if found else limit
        piece = text[start:end]
        if stripped := piece.strip():
            begin = start + len(piece) - len(piece.lstrip())
            yield Span(document.source, begin, begin + len(stripped), stripped)
        start = end


def passages_of(document: Document) -> Iterator[Span]:
    """Runs of whole sentences of at most about 250 characters, the very short ones left out."""
    start = end = 0
    for sentence in sentence_spans(document):
        if end and sentence.end - start > _PASSAGE_CHARACTERS:
            yield from _passage(document, start, end)
            start = sentence.start
        elif not end:
            start = sentence.start
        end = sentence.end
    yield from _passage(document, start, end)


def _passage(document: Document, start: int, end: int) -> Iterator[Span]:
    if end - start >= _SHORTEST_PASSAGE:
        yield Span(document.source, start, end, document.text[start:end])


class Passages(NamedTuple):
    """Passages in a seeded order; `num_found` counts those beyond `MAX_PASSAGES` too."""

    chosen: list[Span]
    num_found: int


def seeded_passages(folder: Path, seed: int, report: ReadReport) -> Passages:
    """At most `MAX_PASSAGES` passages of a dataset, the same ones in the same order for a seed."""
    num_found = 0

    def found() -> Iterator[Span]:
        nonlocal num_found
        for document in iter_documents(folder, report):
            for passage in passages_of(document):
                num_found += 1
                yield passage

    chosen = heapq.nsmallest(MAX_PASSAGES, found(), key=lambda passage: seeded_key(passage, seed))
    return Passages(chosen, num_found)


def seeded_key(span: Span, seed: int) -> bytes:
    """A number to sort spans by: random, and the same on every machine."""
    name = f"{span.source}\0{span.start}\0{span.end}".encode()
    return hashlib.blake2b(name, key=seed.to_bytes(8, "little"), digest_size=8).digest()
