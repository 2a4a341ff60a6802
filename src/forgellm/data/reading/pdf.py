"""PDF: the text layer, page after page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from forgellm.data.reading.reader import SkipRow, Unreadable

MAX_PAGES = 20_000


def read_pdf(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    import pypdfium2 as pdfium

    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        locked = any(word in str(error).lower() for word in ("password", "security"))
        raise Unreadable("encrypted" if locked else "broken PDF") from None
    num_pages = len(document)
    if num_pages > MAX_PAGES:
        raise Unreadable(f"more than {MAX_PAGES} pages")
    texts = []
    for number in range(num_pages):
        try:
            page = document[number]
            text = page.get_textpage().get_text_bounded()
        except pdfium.PdfiumError:
            skip("broken page", number + 1)
            continue
        page.close()
        # U+FFFE stands where a word is divided at the end of a line.
        text = text.replace("\r\n", "\n").replace("\ufffe\n", "").replace("\ufffe", "")
        if text.strip():
            texts.append(text.strip("\n"))
    if not texts:
        raise Unreadable("no text in it: scanned pages?" if num_pages else "no pages")
    yield None, "\n\n".join(texts)
