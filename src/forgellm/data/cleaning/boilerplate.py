"""Lines that repeat at the edges of pages or of documents: headers, footers, page numbers, banners.

Only edges are looked at, for there such lines stand; a refrain or a repeated heading in the middle
of a text is never taken for one. Source code is left alone.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from forgellm.data.cleaning.language import is_code

_DOCUMENT_EDGE = 3  # lines at either end
_MIN_DOCUMENT_LINES = 8  # a shorter document would be edge and nothing else
_MIN_DOCUMENTS = 5
_SHARE_OF_DOCUMENTS = 0.2
_PAGE_EDGE = 2
_MIN_PAGE_LINES = 4
_MIN_PAGES = 3
_SHARE_OF_PAGES = 0.1
_SHARE_WITH_NUMBERS = 0.3  # of pages, for lines that differ in their numbers alone
_MAX_LINE = 200
_SLOTS = 1 << 22
_PAGE_NUMBER = re.compile(
    r"\W*(page|p\.|seite|página|pagina)?\s*#(\s*(of|/|von|de|di|sur)\s*#)?\W*"
)
_DIGITS = re.compile(r"\b\d+\b")


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
    """In how many documents a line stands at the edge, counted in constant memory.

    Two lines may share a counter, of which there are four million; a threshold that grows with the
    number of documents keeps that from mattering.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_SLOTS, np.uint32)
        self._num_documents = 0

    def add(self, file: str, text: str) -> None:
        edges = self._edges(file, text.split("\n"))
        if edges:
            self._num_documents += 1
            for slot in {_slot(key) for _, key in edges}:
                self._counts[slot] += 1

    def repeated_in(self, file: str, text: str) -> list[RepeatedLine]:
        """The lines of a document that are at the edge of many."""
        threshold = max(_MIN_DOCUMENTS, _SHARE_OF_DOCUMENTS * self._num_documents)
        lines = text.split("\n")
        found = [
            (number, lines[number - 1].strip(), int(self._counts[_slot(key)]))
            for number, key in self._edges(file, lines)
            if self._counts[_slot(key)] >= threshold
        ]
        return [
            RepeatedLine(
                line, [number], f"at the edge of {count} of {self._num_documents} documents"
            )
            for number, line, count in found
        ]

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
    """The headers, footers and page numbers of a document whose pages an empty line divides."""
    lines = text.split("\n")
    pages = list(_pages(lines))
    if len(pages) < _MIN_PAGES:
        return []
    exact: Counter[str] = Counter()
    numbered: Counter[str] = Counter()
    for page in pages:
        keys = {_key(lines[number - 1]) for number in page}
        exact.update(keys)
        numbered.update({_DIGITS.sub("#", key) for key in keys})
    found: dict[str, RepeatedLine] = {}
    for number in (number for page in pages for number in page):
        key = _key(lines[number - 1])
        shape = _DIGITS.sub("#", key)
        count = 0
        if _has_words(key) and exact[key] >= max(_MIN_PAGES, _SHARE_OF_PAGES * len(pages)):
            count, group = exact[key], key
        elif (_has_words(shape) or _PAGE_NUMBER.fullmatch(shape)) and "#" in shape:
            group = shape
            enough = numbered[shape] >= max(_MIN_PAGES, _SHARE_WITH_NUMBERS * len(pages))
            count = numbered[shape] if enough else 0
        if count:
            reason = f"at the edge of {count} of {len(pages)} pages"
            line = found.setdefault(group, RepeatedLine(lines[number - 1].strip(), [], reason))
            line.numbers.append(number)
    return list(found.values())


def without_lines(text: str, numbers: Iterable[int]) -> str:
    """`text` less these lines, counted from 1; every other character stays."""
    left_out = set(numbers)
    *lines, last = text.split("\n")
    ended = [*(f"{line}\n" for line in lines), last]
    return "".join(line for number, line in enumerate(ended, 1) if number not in left_out)


def _pages(lines: list[str]) -> Iterator[list[int]]:
    """Numbers of the edge lines of each page that has enough lines."""
    page: list[int] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            page.append(number)
            continue
        if len(page) >= _MIN_PAGE_LINES:
            yield [*page[:_PAGE_EDGE], *page[-_PAGE_EDGE:]]
        page = []


def _key(line: str) -> str:
    return " ".join(line.casefold().split())


def _has_words(key: str) -> bool:
    return len(key) <= _MAX_LINE and sum(map(str.isalpha, key)) >= 3


def _slot(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=4).digest()
    return int.from_bytes(digest, "little") % _SLOTS
