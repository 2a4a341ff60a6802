"""Running heads, feet and page numbers: lines at the borders of pages that belong to no page's text.

They are known by what they have in common over pages, and only at a border: a line is looked at if
nothing but such lines stands between it and the page's first or last line.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_DEPTH = 3  # lines at either border
_MIN_PAGES = 3  # of lines with words
_NEIGHBOURS = (-2, -1, 1, 2)  # some number only every second page
_LONGEST = 200  # characters
_NUMBER = re.compile(r"(?<![a-z\d_])(?:\d+|[ivxl]{1,7})(?![a-z\d_])")
_PAGE_NUMBER = re.compile(
    r"[\s\-–—−|·•~*.\[(<«]*((page|pages|p\.|pg\.|seite|s\.|página|pagina|strona|стр\.|第)\s*)?"
    r"#([\s\-–—.]*#)?(\s*(of|/|von|de|di|sur|из)\s*#)?\s*页?[\s\-–—−|·•~*.\])>»]*"
)
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50}


class Place(NamedTuple):
    """A line of a page, both counted from 0."""

    page: int
    line: int


@dataclass
class EdgeLine:
    """What is printed at a border of several pages.

    Attributes:
        text: the first of these lines.
        places: where the lines are, in order.
    """

    text: str
    places: list[Place] = field(default_factory=list)


def edge_lines(pages: Sequence[Sequence[str]]) -> list[EdgeLine]:
    """The heads, feet and numbers of a document's pages, each given as its lines.

    A line with words is one if it is at the same border of more than half of at least three pages,
    or of every second page; of its numbers one may count the pages. A line that is nothing but a
    number is one if it counts the pages together with a neighbouring page's. No page loses all of
    its lines.
    """
    found: dict[str, EdgeLine] = {}
    taken: set[Place] = set()
    for is_top in (True, False):
        for _ in range(_DEPTH):
            border = {
                number: place
                for number, lines in enumerate(pages)
                if (place := _outermost(number, lines, taken, is_top)) is not None
            }
            new = _alike(pages, border)
            if not new:
                break
            for place, group in new.items():
                taken.add(place)
                line = found.setdefault(group, EdgeLine(pages[place.page][place.line].strip()))
                line.places.append(place)
    for line in found.values():
        line.places.sort()
    return list(found.values())


def _outermost(page: int, lines: Sequence[str], taken: set[Place], is_top: bool) -> Place | None:
    """The line at a border of what is left of a page; None where only one is left."""
    left = [n for n, line in enumerate(lines) if line.strip() and Place(page, n) not in taken]
    return Place(page, left[0 if is_top else -1]) if len(left) > 1 else None


def _alike(pages: Sequence[Sequence[str]], border: dict[int, Place]) -> dict[Place, str]:
    """Those of the lines at one border that are heads, feet or numbers, with what they share."""
    keys = {number: _key(pages[place.page][place.line]) for number, place in border.items()}
    shapes = {number: _NUMBER.sub("#", key) for number, key in keys.items()}
    exact = _frequent(keys, len(pages))
    counting = _counting(keys, shapes, len(pages))
    numbered = _frequent({number: shapes[number] for number in counting}, len(pages))
    most_count = 2 * len(counting) > len(pages) >= _MIN_PAGES
    new = {}
    for number, place in border.items():
        key, shape = keys[number], shapes[number]
        if len(key) > _LONGEST:
            continue
        if _PAGE_NUMBER.fullmatch(shape):
            if number in counting:
                new[place] = shape
        elif _has_words(key) and key in exact:
            new[place] = key
        elif _has_words(shape) and number in counting and (most_count or shape in numbered):
            new[place] = shape
    return new


def _counting(keys: dict[int, str], shapes: dict[int, str], num_pages: int) -> set[int]:
    """The pages whose line has a number that goes up with the pages, as seen on a page nearby, or on
    most of the pages."""
    counting = {number for number in keys if _counts_pages(number, keys, shapes)}
    offsets = Counter(
        offset for number in counting for offset in {n - number for n in _ends(keys[number])}
    )
    usual = {offset for offset, count in offsets.items() if 2 * count > num_pages >= _MIN_PAGES}
    return counting | {
        number for number, key in keys.items() if any(end - number in usual for end in _ends(key))
    }


def _ends(key: str) -> list[int]:
    """The number that a line begins with, and the one that it ends with."""
    found = [
        match for match in _NUMBER.finditer(key) if match.start() == 0 or match.end() == len(key)
    ]
    return [_numbers(match[0])[0] for match in found]


def _frequent(keys: dict[int, str], num_pages: int) -> set[str]:
    """What is on most pages, or on most of every second page."""
    pages_of: dict[str, list[int]] = defaultdict(list)
    for number, key in keys.items():
        pages_of[key].append(number)
    found = set()
    for key, numbers in pages_of.items():
        by_side = Counter(number % 2 for number in numbers)
        most = max(by_side.values())
        if len(numbers) >= _MIN_PAGES and (
            2 * len(numbers) > num_pages or (most > _MIN_PAGES and 4 * most > num_pages)
        ):
            found.add(key)
    return found


def _counts_pages(number: int, keys: dict[int, str], shapes: dict[int, str]) -> bool:
    """Whether one of the line's numbers goes up with the pages, as seen on a page nearby."""
    own = _numbers(keys[number])
    for step in _NEIGHBOURS:
        other = number + step
        if shapes.get(other) == shapes[number]:
            theirs = _numbers(keys[other])
            if any(b - a == step for a, b in zip(own, theirs, strict=True)):
                return True
    return False


def _numbers(key: str) -> list[int]:
    return [int(text) if text.isdecimal() else _roman(text) for text in _NUMBER.findall(key)]


def _roman(text: str) -> int:
    values = [_ROMAN[letter] for letter in text]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


def _key(line: str) -> str:
    return " ".join(line.casefold().split())


def _has_words(key: str) -> bool:
    return sum(map(str.isalpha, key)) >= 3
