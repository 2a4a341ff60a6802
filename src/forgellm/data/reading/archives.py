"""Documents that are zip archives of XML: DOCX, ODT, EPUB."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from forgellm.data.reading.html import decode_html, text_of_html
from forgellm.data.reading.reader import SkipRow, Unreadable

MAX_PART_BYTES = 200_000_000
MAX_PARTS = 20_000
_OPF = "{http://www.idpf.org/2007/opf}"
_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
_PAGES = frozenset({"application/xhtml+xml", "text/html"})


def read_docx(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    import mammoth

    with _opened(path, "DOCX") as archive:
        if "word/document.xml" not in archive.namelist():
            raise Unreadable("no text in it")
    with path.open("rb") as file:
        # Pictures would come along as text.
        found = mammoth.convert_to_html(file, convert_image=lambda image: [])
    yield None, text_of_html(found.value)


def read_odt(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    with _opened(path, "ODT") as archive:
        if b"encryption-data" in _part(archive, "META-INF/manifest.xml", b""):
            raise Unreadable("encrypted")
        root = _xml(_part(archive, "content.xml"))
    blocks = (node for node in root.iter() if node.tag in (f"{_TEXT}p", f"{_TEXT}h"))
    texts = ("".join(_odt_text(block)) for block in blocks)
    yield None, "\n".join(text for text in texts if text.strip())


def _odt_text(node: Any) -> Iterator[str]:
    """The text of a paragraph; spaces, tabs and line ends are elements of their own there."""
    yield node.text or ""
    for child in node:
        if child.tag == f"{_TEXT}s":
            yield " " * min(int(child.get(f"{_TEXT}c", "1")), 100)
        elif child.tag == f"{_TEXT}tab":
            yield "\t"
        elif child.tag == f"{_TEXT}line-break":
            yield "\n"
        elif child.tag not in (f"{_TEXT}p", f"{_TEXT}h", f"{_TEXT}note", f"{_TEXT}tracked-changes"):
            yield from _odt_text(child)
        yield child.tail or ""


def read_epub(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    with _opened(path, "EPUB") as archive:
        if "META-INF/rights.xml" in archive.namelist():
            raise Unreadable("encrypted")
        container = _xml(_part(archive, "META-INF/container.xml"))
        rootfile = container.find(f".//{_CONTAINER}rootfile")
        if rootfile is None:
            raise Unreadable("broken EPUB: it names no content")
        package_path = rootfile.get("full-path", "")
        texts = []
        for number, name in enumerate(_spine(archive, package_path), 1):
            try:
                texts.append(text_of_html(decode_html(_part(archive, name))))
            except Unreadable as error:
                skip(str(error), number)
    if not any(text.strip() for text in texts):
        raise Unreadable("no text in it")
    yield None, "\n\n".join(text for text in texts if text.strip())


def _spine(archive: zipfile.ZipFile, package_path: str) -> list[str]:
    """Names of the pages in reading order."""
    package = _xml(_part(archive, package_path))
    items = {item.get("id"): item for item in package.iter(f"{_OPF}item")}
    folder = posixpath.dirname(package_path)
    names = []
    for reference in package.iter(f"{_OPF}itemref"):
        item = items.get(reference.get("idref"))
        if item is not None and item.get("media-type") in _PAGES:
            href = unquote(item.get("href", "").partition("#")[0])
            names.append(posixpath.normpath(posixpath.join(folder, href)))
    return names[:MAX_PARTS]


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[zipfile.ZipFile]:
    """Raises Unreadable for what is no archive, is encrypted, or would grow beyond all bounds."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if len(parts) > MAX_PARTS:
                raise Unreadable(f"more than {MAX_PARTS} parts")
            if any(part.file_size > MAX_PART_BYTES for part in parts):
                raise Unreadable(f"a part of more than {MAX_PART_BYTES // 1_000_000} MB")
            if any(part.flag_bits & 1 for part in parts):
                raise Unreadable("encrypted")
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise Unreadable(f"broken {kind}: {error}"[:200]) from None


def _part(archive: zipfile.ZipFile, name: str, absent: bytes | None = None) -> bytes:
    """A part, however much its header says it holds. Raises Unreadable."""
    try:
        with archive.open(name) as part:
            content = part.read(MAX_PART_BYTES + 1)
    except KeyError:
        if absent is not None:
            return absent
        raise Unreadable(f"it lacks {posixpath.basename(name) or 'a part'}"[:100]) from None
    if len(content) > MAX_PART_BYTES:
        raise Unreadable(f"a part of more than {MAX_PART_BYTES // 1_000_000} MB")
    return content


def _xml(content: bytes) -> Any:
    """The root element; entities, which can grow without bound, are refused. Raises Unreadable."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        return fromstring(content)
    except DefusedXmlException:
        raise Unreadable("XML with entities") from None
    except ParseError as error:
        raise Unreadable(f"broken XML: {error}"[:200]) from None
