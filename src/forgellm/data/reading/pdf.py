"""PDF: the text layer, page after page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from forgellm.data.reading.divided_words import join_divided_words
from forgellm.data.reading.page_edges import edge_lines
from forgellm.data.reading.pdf_page import Line, PageText
from forgellm.data.reading.reader import SkipRow, Unreadable

MAX_PAGES = 20_000
_APART = 1.4  # of the usual distance of a page's lines
_LEADERS = re.compile(r"\s*(?:[.·…]\s?){5,}\s*(?=[\w\-–.]{0,8}$)")


def read_pdf(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    pages = list(_pages(path, skip))
    texts = [
        "\n".join(_without_leaders(line.text) for line in lines) for lines in inner_lines(pages)
    ]
    texts = [text.strip("\n") for text in texts if text.strip()]
    if not texts:
        raise Unreadable("no text in it: scanned pages?" if pages else "no pages")
    yield None, join_divided_words("\f".join(texts)).replace("\f", "\n\n")


def inner_lines(pages: list[list[Line]]) -> list[list[Line]]:
    """The pages without their heads, feet and numbers.

    Beyond what `edge_lines` finds, a head that is on a single page only is known by its place:
    alone at a height where most pages have a head or a foot.
    """
    gone: list[set[int]] = [set() for _ in pages]
    for found in edge_lines([[line.text for line in lines] for lines in pages]):
        for page, line in found.places:
            gone[page].add(line)
    heights: Counter[int] = Counter()
    for lines, numbers in zip(pages, gone, strict=True):
        heights.update({round(lines[number].baseline) for number in numbers})
    usual = {height for height, count in heights.items() if height and 2 * count > len(pages)}
    kept = []
    for lines, numbers in zip(pages, gone, strict=True):
        inside = [line for number, line in enumerate(lines) if number not in numbers]
        kept.append(_without_lone_heads([line for line in inside if line.text], usual))
    return kept


def _without_lone_heads(lines: list[Line], usual: set[int]) -> list[Line]:
    heights = [line.baseline for line in lines if line.baseline]
    steps = sorted(abs(a - b) for a, b in pairwise(heights) if abs(a - b) > 1)
    if not usual or not steps:
        return lines
    apart = _APART * steps[len(steps) // 2]
    while len(lines) > 2 and _is_alone(lines[0], lines[1], usual, apart):
        lines = lines[1:]
    while len(lines) > 2 and _is_alone(lines[-1], lines[-2], usual, apart):
        lines = lines[:-1]
    return lines


def _is_alone(line: Line, inner: Line, usual: set[int], apart: float) -> bool:
    at_usual = not usual.isdisjoint(range(round(line.baseline) - 1, round(line.baseline) + 2))
    return at_usual and abs(line.baseline - inner.baseline) > apart


def _without_leaders(text: str) -> str:
    """A line of a contents list with a tab in place of the dots that lead to its page number."""
    return _LEADERS.sub("\t", text).rstrip()


def _pages(path: Path, skip: SkipRow) -> Iterator[list[Line]]:
    """The lines of each page that can be read. Raises Unreadable."""
    import pypdfium2 as pdfium

    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        locked = any(word in str(error).lower() for word in ("password", "security"))
        raise Unreadable("encrypted" if locked else "broken PDF") from None
    num_pages = len(document)
    if num_pages > MAX_PAGES:
        raise Unreadable(f"more than {MAX_PAGES} pages")
    for number in range(num_pages):
        try:
            page = document[number]
            text = PageText(page.get_textpage())
        except pdfium.PdfiumError:
            skip("broken page", number + 1)
            continue
        yield text.lines()
        page.close()
