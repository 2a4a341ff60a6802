"""Lines that repeat at the edges of pages or of documents: headers, footers, page numbers, banners.

Only edges are looked at, for there such lines stand; a refrain or a repeated heading in the middle
of a text is never taken for one. Source code is left alone.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from forgellm.data.cleaning.language import is_code
from forgellm.data.reading.page_edges import edge_lines

_DOCUMENT_EDGE = 3  # lines at either end
_MIN_DOCUMENT_LINES = 8  # a shorter document would be edge and nothing else
_MIN_DOCUMENTS = 5
_SHARE_OF_DOCUMENTS = 0.2  # of all, or of those in one folder
_MIN_PAGE_LINES = 4
_MIN_PAGES = 3
_MAX_LINE = 200
_SLOTS = 1 << 22
_ALL = "/"  # no folder of a dataset is called so


class RepeatedLine(NamedTuple):
    """A line to leave out of a document.

    Attributes:
        numbers: where it stands, from 1.
        reason: what it repeats over, in words.
    """

    text: str
    numbers: list[int]
    reason: str


class EdgeLines:
    """In how many documents a line stands at the edge, counted in constant memory: of all documents,
    and of those in the same folder, where a manual's or a site's pages lie together.

    Two lines may share a counter, of which there are four million; a threshold that grows with the
    number of documents keeps that from mattering.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_SLOTS, np.uint32)
        self._num_documents: Counter[str] = Counter()  # by folder; all of them under "/"

    def add(self, file: str, text: str) -> None:
        edges = self._edges(file, text.split("\n"))
        if edges:
            for folder in (_ALL, posixpath.dirname(file)):
                self._num_documents[folder] += 1
                for slot in {_slot(folder, key) for _, key in edges}:
                    self._counts[slot] += 1

    def repeated_in(self, file: str, text: str) -> list[RepeatedLine]:
        """The lines of a document that are at the edge of many."""
        lines = text.split("\n")
        found = []
        for number, key in self._edges(file, lines):
            reason = self._reason(_ALL, key) or self._reason(posixpath.dirname(file), key)
            if reason is not None:
                found.append(RepeatedLine(lines[number - 1].strip(), [number], reason))
        return found

    def _reason(self, folder: str, key: str) -> str | None:
        """None if not so many documents have the line."""
        count = int(self._counts[_slot(folder, key)])
        num_documents = self._num_documents[folder]
        if count < max(_MIN_DOCUMENTS, _SHARE_OF_DOCUMENTS * num_documents):
            return None
        where = "" if folder == _ALL else f" in {folder}" if folder else " in this folder"
        return f"at the edge of {count} of {num_documents} documents{where}"

    def _edges(self, file: str, lines: list[str]) -> list[tuple[int, str]]:
        """(line number, key) of the lines that may be boilerplate."""
        if is_code(file):
            return []
        filled = [number for number, line in enumerate(lines, 1) if line.strip()]
        if len(filled) < _MIN_DOCUMENT_LINES:
            return []
        edge = [*filled[:_DOCUMENT_EDGE], *filled[-_DOCUMENT_EDGE:]]
        keys = ((number, _key(lines[number - 1])) for number in edge)
        return [(number, key) for number, key in keys if _has_words(key)]


def repeated_over_pages(text: str) -> list[RepeatedLine]:
    """The headers, footers and page numbers of a document whose pages end with form feeds or, where
    it has none, with empty lines."""
    pages: list[list[str]] = [[]]
    places: list[list[int]] = [[]]
    by_form_feeds = "\f" in text
    for number, line in enumerate(text.split("\n"), 1):
        ends_before = line.startswith("\f") if by_form_feeds else not line.strip()
        if ends_before:
            pages.append([])
            places.append([])
        if line.strip():
            pages[-1].append(line.strip())
            places[-1].append(number)
    whole = [index for index, page in enumerate(pages) if len(page) >= _MIN_PAGE_LINES]
    if len(whole) < _MIN_PAGES:
        return []
    found = edge_lines([pages[index] for index in whole])
    return [
        RepeatedLine(
            line.text,
            [places[whole[place.page]][place.line] for place in line.places],
            f"at the edge of {len({place.page for place in line.places})} of {len(whole)} pages",
        )
        for line in found
    ]


def without_lines(text: str, numbers: Iterable[int]) -> str:
    """`text` less these lines, counted from 1; every other character stays."""
    left_out = set(numbers)
    *lines, last = text.split("\n")
    ended = [*(f"{line}\n" for line in lines), last]
    return "".join(line for number, line in enumerate(ended, 1) if number not in left_out)


def _key(line: str) -> str:
    return " ".join(line.casefold().split())


def _has_words(key: str) -> bool:
    return len(key) <= _MAX_LINE and sum(map(str.isalpha, key)) >= 3


def _slot(folder: str, key: str) -> int:
    named = f"{folder}\0{key}".encode("utf-8", "replace")
    digest = hashlib.blake2b(named, digest_size=4).digest()
    return int.from_bytes(digest, "little") % _SLOTS
