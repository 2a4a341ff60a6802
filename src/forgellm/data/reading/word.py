"""DOCX: what a reader of the document sees, less what stands around its pages.

Left out: deleted and moved-away text, comments, hidden text, the codes of fields, headers and
footers, pictures. Notes stand at the end, each with the number that marks its place.
"""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forgellm.data.reading.archives import opened, part_of, xml_of
from forgellm.data.reading.formulas import local_name, text_of_omml
from forgellm.data.reading.reader import SkipRow, Unreadable
from forgellm.data.reading.tables import lines_of_row

_LEFT_OUT = frozenset(
    "del moveFrom delText instrText delInstrText rPr pPr sdtPr sdtEndPr tblPr tblGrid trPr tcPr "
    "sectPr comment annotationRef footnoteRef endnoteRef rt".split()
)
_AS_TEXT = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "\u2011"}
_OFF = frozenset({"0", "false", "off"})


def read_docx(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    with opened(path, "DOCX") as archive:
        document = _Document(archive, skip)
        lines = list(document.lines())
    yield None, "\n".join(line for line in lines if line.strip())


class _Document:
    """Element names are taken without their namespaces, of which there are two for each."""

    def __init__(self, archive: zipfile.ZipFile, skip: SkipRow) -> None:
        self._archive = archive
        self._skip = skip
        main = self._target("_rels/.rels", "/officeDocument", "word/document.xml")
        if main not in archive.namelist():
            raise Unreadable("no text in it")
        self._body = xml_of(part_of(archive, main))
        folder, name = posixpath.split(main)
        relations = posixpath.join(folder, "_rels", f"{name}.rels")
        self._hidden_styles = _hidden_styles(
            self._part(self._target(relations, "/styles", posixpath.join(folder, "styles.xml")))
        )
        self._notes: dict[tuple[str, str], Any] = {}
        for kind in ("footnote", "endnote"):
            part = self._target(relations, f"/{kind}s", posixpath.join(folder, f"{kind}s.xml"))
            for note in self._part(part):
                if local_name(note) == kind:
                    self._notes[kind, _value(note, "id")] = note
        self._referred: list[Any] = []
        self._boxes: list[Any] = []

    def lines(self) -> Iterator[str]:
        yield from self._blocks(self._body)
        number = 0
        while number < len(self._referred):  # a note may refer to another
            note = list(self._blocks(self._referred[number]))
            number += 1
            yield f"[{number}] " + " ".join(line.strip() for line in note if line.strip())

    def _target(self, relations: str, kind: str, default: str) -> str:
        """The part that a relation of this kind leads to."""
        folder = posixpath.dirname(posixpath.dirname(relations))
        for relation in self._part(relations):
            if relation.get("Type", "").endswith(kind) and relation.get("TargetMode") != "External":
                target = relation.get("Target", "")
                return posixpath.normpath(posixpath.join("/", folder, target))[1:]
        return default

    def _part(self, name: str) -> Any:
        """An optional part's root, or an empty one."""
        return xml_of(part_of(self._archive, name, b"<none/>"))

    def _blocks(self, node: Any) -> Iterator[str]:
        name = local_name(node)
        if name == "p":
            yield self._paragraph(node)
            yield from self._framed()
        elif name == "tbl":
            yield from self._table(node)
        elif name == "altChunk":
            self._skip("an embedded document is not read", 1)
        elif name == "AlternateContent":
            yield from self._chosen(node)
        elif name in ("oMathPara", "oMath"):
            yield text_of_omml(node)
        elif name not in _LEFT_OUT and not _is_placeholder(node):
            for child in node:
                yield from self._blocks(child)

    def _chosen(self, node: Any) -> list[str]:
        """One of several forms of the same: the first that has text."""
        for branch in node:
            lines = [line for child in branch for line in self._blocks(child)]
            if any(line.strip() for line in lines):
                return lines
        return []

    def _table(self, table: Any) -> Iterator[str]:
        for row in _inside(table, "tr"):
            cells = [
                [line for child in cell for line in self._blocks(child) if line.strip()]
                for cell in _inside(row, "tc")
            ]
            yield from lines_of_row(cells)

    def _framed(self) -> Iterator[str]:
        """The text of boxes that hang on the paragraph just read."""
        boxes, self._boxes = self._boxes, []
        for box in boxes:
            for child in box:
                yield from self._blocks(child)

    def _paragraph(self, node: Any) -> str:
        if self._has_hidden_style(node, "pPr", "pStyle"):
            return ""
        return "".join(self._inline(node))

    def _inline(self, node: Any) -> Iterator[str]:
        for child in node:
            name = local_name(child)
            if name == "t":
                yield child.text or ""
            elif name in _AS_TEXT:
                yield _AS_TEXT[name]
            elif name == "sym":
                yield _symbol(child)
            elif name in ("oMath", "oMathPara"):
                yield text_of_omml(child)
            elif name in ("footnoteReference", "endnoteReference"):
                yield self._mark(name.removesuffix("Reference"), _value(child, "id"))
            elif name == "txbxContent":
                self._boxes.append(child)
            elif name == "AlternateContent":
                yield from self._chosen_inline(child)
            elif name == "ruby":
                yield "".join(self._inline(child))
                yield "".join(f"({_all_text(part)})" for part in child if local_name(part) == "rt")
            elif not (name in _LEFT_OUT or _is_placeholder(child) or self._is_hidden(child)):
                yield from self._inline(child)

    def _chosen_inline(self, node: Any) -> Iterator[str]:
        for branch in node:
            num_boxes = len(self._boxes)
            text = "".join(self._inline(branch))
            if text.strip() or any(_all_text(box).strip() for box in self._boxes[num_boxes:]):
                yield text
                return
            del self._boxes[num_boxes:]

    def _mark(self, kind: str, identity: str) -> str:
        note = self._notes.get((kind, identity))
        if note is None:
            self._skip(f"{kind} not found", 1)
            return ""
        self._referred.append(note)
        return f"[{len(self._referred)}]"

    def _is_hidden(self, node: Any) -> bool:
        if local_name(node) != "r":
            return False
        for properties in node:
            if local_name(properties) == "rPr":
                for setting in properties:
                    if local_name(setting) == "vanish":
                        return _value(setting, "val") not in _OFF
        return self._has_hidden_style(node, "rPr", "rStyle")

    def _has_hidden_style(self, node: Any, properties: str, setting: str) -> bool:
        return any(
            local_name(inner) == setting and _value(inner, "val") in self._hidden_styles
            for child in node
            if local_name(child) == properties
            for inner in child
        )


def _hidden_styles(styles: Any) -> set[str]:
    """Ids of styles whose text is hidden, by themselves or by the style that they are based on."""
    hidden: dict[str, bool] = {}
    bases: dict[str, str] = {}
    for style in styles:
        identity = _value(style, "styleId")
        for child in style:
            if local_name(child) == "basedOn":
                bases[identity] = _value(child, "val")
            elif local_name(child) == "rPr":
                for setting in child:
                    if local_name(setting) == "vanish":
                        hidden[identity] = _value(setting, "val") not in _OFF
    found = set()
    for style in {*hidden, *bases}:
        seen: set[str] = set()
        name = style
        while name not in hidden and name in bases and name not in seen:
            seen.add(name)
            name = bases[name]
        if hidden.get(name):
            found.add(style)
    return found


def _is_placeholder(node: Any) -> bool:
    """Whether it is a form's field that shows how to fill it in."""
    return local_name(node) == "sdt" and any(
        local_name(inner) == "showingPlcHdr"
        for child in node
        if local_name(child) == "sdtPr"
        for inner in child
    )


def _inside(node: Any, name: str) -> Iterator[Any]:
    """Rows of a table or cells of a row, also those in controls; none of a table inside. What was
    deleted is left out."""
    for child in node:
        found = local_name(child)
        if found == name:
            if not _is_deleted(child):
                yield child
        elif found in ("sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag"):
            yield from _inside(child, name)


def _is_deleted(node: Any) -> bool:
    return any(
        local_name(inner) in ("del", "cellDel")
        for child in node
        if local_name(child) in ("trPr", "tcPr")
        for inner in child
    )


def _symbol(node: Any) -> str:
    """A character of a font of signs, by mammoth's table."""
    from mammoth.docx.dingbats import dingbats

    try:
        code = int(_value(node, "char"), 16)
    except ValueError:
        return ""
    font = _value(node, "font")
    private = 0xF000 <= code <= 0xF0FF  # how Word names a font's own places
    found = dingbats.get((font, code - 0xF000 if private else code))
    return chr(found) if found is not None else "" if private or code < 0x20 else chr(code)


def _value(node: Any, name: str) -> str:
    for key, value in node.attrib.items():
        if key.rpartition("}")[2] == name:
            return str(value)
    return ""


def _all_text(node: Any) -> str:
    return "".join(inner.text or "" for inner in node.iter() if local_name(inner) == "t")
