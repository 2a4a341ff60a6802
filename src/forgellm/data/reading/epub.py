"""EPUB: the chapters of a book in reading order.

The table of contents, which repeats the chapters' headings, and pages beside the reading order
(`linear="no"`: answers, pop-up notes, advertisements) are left out.
"""

from __future__ import annotations

import posixpath
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from forgellm.data.reading.archives import MAX_PARTS, opened, part_of, xml_of
from forgellm.data.reading.formulas import local_name
from forgellm.data.reading.html import decode_html, text_of_html
from forgellm.data.reading.reader import SkipRow, Unreadable

_PAGES = frozenset({"application/xhtml+xml", "text/html", "text/x-oeb1-document"})
_PACKAGE = "application/oebps-package+xml"
_LOCKS = ("META-INF/rights.xml", "META-INF/sinf.xml")
# Fonts are scrambled by these, which locks nothing else.
_FONT_SCRAMBLING = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


def read_epub(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    with opened(path, "EPUB") as archive:
        if any(lock in archive.namelist() for lock in _LOCKS):
            raise Unreadable("encrypted")
        book = _Book(archive, skip)
        texts = list(book.texts())
    if not any(text.strip() for text in texts):
        raise Unreadable("encrypted" if book.is_locked else "no text in it")
    yield None, "\n\n".join(text for text in texts if text.strip())


class _Book:
    """Attributes:
    is_locked: whether a page was met that is encrypted.
    """

    def __init__(self, archive: zipfile.ZipFile, skip: SkipRow) -> None:
        self._archive = archive
        self._skip = skip
        self._names = {_plain(name): name for name in archive.namelist()}
        self._locked = {_plain(name) for name in _locked(archive)}
        self._path = _package_path(archive)
        self._package = xml_of(part_of(archive, self._path))
        self._items = {item.get("id"): item for item in _all(self._package, "item")}
        self.is_locked = False

    def texts(self) -> Iterator[str]:
        contents = self._contents()
        seen = set()
        for number, reference in enumerate(list(_all(self._package, "itemref"))[:MAX_PARTS], 1):
            item = self._page(self._items.get(reference.get("idref")))
            if item is None:
                self._skip("no page of text", number)
            elif reference.get("linear") == "no":
                self._skip("beside the reading order", number)
            elif (name := self._name(item)) not in contents and name not in seen:
                seen.add(name)
                try:
                    yield self._text(name)
                except Unreadable as error:
                    self._skip(str(error), number)

    def _page(self, item: Any) -> Any:
        """The item if it is a page of text, or what stands for it where it is none."""
        for _ in range(len(self._items)):
            if item is None or item.get("media-type") in _PAGES:
                return item
            item = self._items.get(item.get("fallback"))
        return None

    def _text(self, name: str) -> str:
        if _plain(name) in self._locked:
            self.is_locked = True
            raise Unreadable("encrypted")
        return text_of_html(decode_html(part_of(self._archive, name)))

    def _contents(self) -> set[str]:
        """The pages that list what is in the book: EPUB 3 names it as an item, EPUB 2 in a guide."""
        named = [
            self._name(item)
            for item in self._items.values()
            if "nav" in (item.get("properties") or "").split()
        ]
        guided = [
            self._name(reference)
            for reference in _all(self._package, "reference")
            if reference.get("type") == "toc"
        ]
        return {*named, *guided}

    def _name(self, item: Any) -> str:
        """The part that an item or a reference means, as it is called in the archive."""
        href = item.get("href", "").partition("#")[0]
        folder = posixpath.dirname(self._path)
        for written in (href, unquote(href)):
            name = posixpath.normpath(posixpath.join(folder, written))
            if _plain(name) in self._names:
                return self._names[_plain(name)]
        return posixpath.normpath(posixpath.join(folder, unquote(href)))


def _package_path(archive: zipfile.ZipFile) -> str:
    container = xml_of(part_of(archive, "META-INF/container.xml"))
    rootfiles = list(_all(container, "rootfile"))
    if not rootfiles:
        raise Unreadable("broken EPUB: it names no content")
    packages = [file for file in rootfiles if file.get("media-type") == _PACKAGE]
    return unquote((packages or rootfiles)[0].get("full-path", ""))


def _locked(archive: zipfile.ZipFile) -> Iterator[str]:
    """Names of the encrypted parts, fonts aside."""
    root = xml_of(part_of(archive, "META-INF/encryption.xml", b"<none/>"))
    for data in _all(root, "EncryptedData"):
        methods = [method.get("Algorithm", "") for method in _all(data, "EncryptionMethod")]
        if not any(method.startswith(_FONT_SCRAMBLING) for method in methods):
            yield from (unquote(part.get("URI", "")) for part in _all(data, "CipherReference"))


def _all(root: Any, name: str) -> Iterator[Any]:
    """Elements by their name alone: old books have another namespace."""
    return (node for node in root.iter() if local_name(node) == name)


def _plain(name: str) -> str:
    """Names differ in case and in the form of accents from how they are referred to."""
    return unicodedata.normalize("NFC", name).casefold()
