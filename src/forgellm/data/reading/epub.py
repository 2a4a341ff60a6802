"""EPUB: the chapters of a book in reading order."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from forgellm.data.reading.archives import MAX_PARTS, opened, part_of, xml_of
from forgellm.data.reading.html import decode_html, text_of_html
from forgellm.data.reading.reader import SkipRow, Unreadable

_OPF = "{http://www.idpf.org/2007/opf}"
_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
_PAGES = frozenset({"application/xhtml+xml", "text/html"})


def read_epub(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    with opened(path, "EPUB") as archive:
        if "META-INF/rights.xml" in archive.namelist():
            raise Unreadable("encrypted")
        container = xml_of(part_of(archive, "META-INF/container.xml"))
        rootfile = container.find(f".//{_CONTAINER}rootfile")
        if rootfile is None:
            raise Unreadable("broken EPUB: it names no content")
        package_path = rootfile.get("full-path", "")
        texts = []
        for number, name in enumerate(_spine(archive, package_path), 1):
            try:
                texts.append(text_of_html(decode_html(part_of(archive, name))))
            except Unreadable as error:
                skip(str(error), number)
    if not any(text.strip() for text in texts):
        raise Unreadable("no text in it")
    yield None, "\n\n".join(text for text in texts if text.strip())


def _spine(archive: zipfile.ZipFile, package_path: str) -> list[str]:
    """Names of the pages in reading order."""
    package = xml_of(part_of(archive, package_path))
    items = {item.get("id"): item for item in package.iter(f"{_OPF}item")}
    folder = posixpath.dirname(package_path)
    names = []
    for reference in package.iter(f"{_OPF}itemref"):
        item = items.get(reference.get("idref"))
        if item is not None and item.get("media-type") in _PAGES:
            href = unquote(item.get("href", "").partition("#")[0])
            names.append(posixpath.normpath(posixpath.join(folder, href)))
    return names[:MAX_PARTS]
