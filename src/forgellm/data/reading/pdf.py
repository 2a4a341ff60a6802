"""PDF: the text layer, page after page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from forgellm.data.reading.divided_words import join_divided_words
from forgellm.data.reading.pdf_page import Line, PageText
from forgellm.data.reading.reader import SkipRow, Unreadable

MAX_PAGES = 20_000


def read_pdf(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    pages = list(_pages(path, skip))
    texts = ["\n".join(line.text for line in lines).strip("\n") for lines in pages]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise Unreadable("no text in it: scanned pages?" if pages else "no pages")
    yield None, join_divided_words("\f".join(texts)).replace("\f", "\n\n")


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
