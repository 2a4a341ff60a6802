"""ODT: what a reader of the document sees, less what stands around its pages.

Left out: deleted text, comments, hidden text and sections, headers and footers, pictures. Notes
stand at the end, each with the number that marks its place.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forgellm.data.reading.archives import opened, part_of, xml_of
from forgellm.data.reading.formulas import local_name, text_of_mathml
from forgellm.data.reading.reader import SkipRow, Unreadable
from forgellm.data.reading.tables import lines_of_row

_TEXT = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
_TABLE = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_LEFT_OUT = frozenset(
    "tracked-changes annotation annotation-end forms binary-data title desc script event-listeners "
    "note-citation hidden-text ruby-text automatic-styles master-styles covered-table-cell "
    "sequence-decls variable-decls user-field-decls dde-connection-decls".split()
)
_MAX_REPEATED = 100


def read_odt(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    with opened(path, "ODT") as archive:
        if b"encryption-data" in part_of(archive, "META-INF/manifest.xml", b""):
            raise Unreadable("encrypted")
        lines = list(_Document(archive).lines())
    yield None, "\n".join(line for line in lines if line.strip())


class _Document:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._content = xml_of(part_of(archive, "content.xml"))
        styles = xml_of(part_of(archive, "styles.xml", b"<none/>"))
        self._hidden_styles = _hidden_styles(styles) | _hidden_styles(self._content)
        self._notes: list[Any] = []
        self._boxes: list[Any] = []

    def lines(self) -> Iterator[str]:
        yield from self._blocks(self._content)
        number = 0
        while number < len(self._notes):
            note = list(self._blocks(self._notes[number]))
            number += 1
            yield f"[{number}] " + " ".join(line.strip() for line in note if line.strip())

    def _blocks(self, node: Any) -> Iterator[str]:
        name = local_name(node)
        if name in _LEFT_OUT or self._is_hidden(node):
            return
        if node.tag in (f"{_TEXT}p", f"{_TEXT}h"):
            yield "".join(self._inline(node)).strip(" ")
            boxes, self._boxes = self._boxes, []
            for box in boxes:
                yield from (line for child in box for line in self._blocks(child))
        elif name == "object":
            yield self._formula(node)
        elif name == "table-row":
            repeated = _count(node, f"{_TABLE}number-rows-repeated")
            for _ in range(repeated):
                yield from lines_of_row(list(self._cells(node)))
        else:
            for child in node:
                yield from self._blocks(child)

    def _cells(self, row: Any) -> Iterator[list[str]]:
        for cell in row:
            if local_name(cell) == "table-cell":
                lines = [line for child in cell for line in self._blocks(child) if line.strip()]
                # Empty cells up to the table's edge are no text.
                yield from [lines] * (
                    _count(cell, f"{_TABLE}number-columns-repeated") if lines else 1
                )

    def _inline(self, node: Any) -> Iterator[str]:
        yield _collapsed(node.text)
        for child in node:
            name = local_name(child)
            if name in _LEFT_OUT or self._is_hidden(child):
                pass
            elif name == "s":
                yield " " * _count(child, f"{_TEXT}c")
            elif name == "tab":
                yield "\t"
            elif name == "line-break":
                yield "\n"
            elif name == "note":
                yield self._mark(child)
            elif name == "text-box" or child.find(f"{_TEXT}p") is not None:  # or a shape
                self._boxes.append(child)
            elif name == "object":
                yield self._formula(child)
            elif name == "ruby":
                yield "".join(self._inline(child))
                readings = (part for part in child if local_name(part) == "ruby-text")
                yield "".join(f"({''.join(part.itertext())})" for part in readings)
            else:
                yield from self._inline(child)
            yield _collapsed(child.tail)

    def _mark(self, note: Any) -> str:
        for body in note:
            if local_name(body) == "note-body":
                self._notes.append(body)
                return f"[{len(self._notes)}]"
        return ""

    def _formula(self, node: Any) -> str:
        """An object's formula, within the document or in a part of its own; empty for a chart."""
        for inner in node.iter():
            if local_name(inner) == "math":
                return text_of_mathml(inner)
        name = posixpath.normpath(posixpath.join(node.get(_LINK, ""), "content.xml"))
        if name not in self._archive.namelist():
            return ""
        root = xml_of(part_of(self._archive, name))
        return text_of_mathml(root) if local_name(root) == "math" else ""

    def _is_hidden(self, node: Any) -> bool:
        """Sections and paragraphs may be hidden, and any text by its style."""
        if node.get(f"{_TEXT}style-name") in self._hidden_styles:
            return True
        name = local_name(node)
        if name == "section":
            shown = node.get(f"{_TEXT}display")
            return shown == "none" or (shown == "condition" and _is_true(node))
        return any(local_name(child) == "hidden-paragraph" and _is_true(child) for child in node)


def _is_true(node: Any) -> bool:
    return bool(node.get(f"{_TEXT}is-hidden") == "true")


def _hidden_styles(root: Any) -> set[str]:
    """Names of styles whose text is hidden."""
    found: set[str] = set()
    for style in root.iter():
        if local_name(style) == "style":
            settings = {
                local_name(inner): value
                for inner in style
                if local_name(inner) == "text-properties"
                for key, value in inner.attrib.items()
                if key == f"{_TEXT}display"
            }
            if "none" in settings.values():
                found.update(value for key, value in style.attrib.items() if key.endswith("}name"))
    return found


def _collapsed(text: str | None) -> str:
    """Spaces and line ends of the XML are one space; others are elements of their own."""
    return re.sub(r"[ \t\r\n]+", " ", text or "")


def _count(node: Any, attribute: str) -> int:
    try:
        return max(0, min(int(node.get(attribute, "1")), _MAX_REPEATED))
    except ValueError:
        return 1
