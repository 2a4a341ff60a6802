"""HTML: the visible text, a line per block, without the navigation around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forgellm.data.reading.html_surroundings import drop_surroundings
from forgellm.data.reading.reader import SkipRow, Unreadable, decode
from forgellm.data.reading.tables import lines_of_row
from forgellm.data.reading.web_encodings import decode_label

_BLOCKS = (
    "address,article,aside,blockquote,br,caption,center,dd,details,dialog,div,dl,dt,fieldset,"
    "figcaption,figure,footer,form,h1,h2,h3,h4,h5,h6,header,hgroup,hr,legend,li,main,menu,nav,ol,"
    "option,p,pre,search,section,summary,table,tr,ul"
)
_NO_CELL_HOLDS = "h1,h2,h3,h4,h5,h6,pre,table,ul,ol,dl,blockquote,section,article"
_LONGEST_CELL = 1000  # characters; beyond it a table is a page's layout
_DECLARED = re.compile(
    rb"""(?:<meta[^>]{0,200}charset|<\?xml[^>]{0,200}encoding)\s*=\s*["']?([\w.:-]+)""",
    re.IGNORECASE,
)
# XHTML may close any element at once; for an HTML parser `<title/>` would swallow what follows.
_CLOSED_AT_ONCE = re.compile(
    r"<(?!(?:area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr)\b)"
    r"([a-zA-Z][\w:-]*)((?:\s[^<>]*)?)/>"
)
# Block borders, tabs and the layout inside <pre> ride through the whitespace collapse as controls.
_LINE, _SPACE, _TAB, _PRE = "\x1e", "\x1f", "\x1d", "\x1c"
_LAID_OUT = str.maketrans({"\n": _LINE + _PRE, " ": _SPACE, "\t": _TAB, "\r": None})
_SHOWN = str.maketrans({_SPACE: " ", _TAB: "\t", _PRE: None, "\xa0": " "})


def read_html(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    yield None, text_of_html(decode_html(path.read_bytes()))


def decode_html(raw: bytes) -> str:
    """UTF-8 or UTF-16 where it is that, and else the encoding that the page declares."""
    declared = _DECLARED.search(raw[:4096])
    try:
        return decode(raw)
    except Unreadable:
        if declared is None:
            raise
        return decode_label(raw, declared[1].decode("ascii"))


def text_of_html(markup: str) -> str:
    from selectolax.lexbor import LexborHTMLParser

    if "/>" in markup and ("<?xml" in markup[:200] or "http://www.w3.org/1999/xhtml" in markup):
        markup = _CLOSED_AT_ONCE.sub(r"<\1\2></\1>", markup)
    tree = LexborHTMLParser(re.sub("[\x1c-\x1f]", " ", markup))
    _write_formulas(tree)
    tree.strip_tags(["script", "style", "noscript", "template", "head"])
    drop_surroundings(tree)
    _write_rubies(tree)
    for node in tree.css("pre"):
        for line_end in node.css("br"):
            line_end.replace_with("\n")
        text = node.text().strip("\r\n").translate(_LAID_OUT)
        node.replace_with(f"{_LINE}{_PRE}{text}{_LINE}")
    for node in tree.css("q"):
        node.insert_before("“")
        node.insert_after("”")
    for node in tree.css("tr"):
        _write_row(node)
    for node in tree.css(_BLOCKS):
        node.insert_before(_LINE)
        node.insert_after(_LINE)
    return _lines(tree.body.text() if tree.body else "")


def _lines(body: str) -> str:
    lines = (re.sub(r"[ \t\r\n\f]+", " ", line).strip(" ") for line in body.split(_LINE))
    return "\n".join(line for line in lines if line).translate(_SHOWN).strip("\n")


def _write_row(row: Any) -> None:
    """A row of data becomes a line; one that lays out a page stays the blocks that it holds."""
    cells = [node for node in row.iter() if node.tag in ("td", "th")]
    if len(cells) < 2 or any(_is_layout(cell) for cell in cells):
        return
    for cell in cells:
        for block in cell.css("br,p,div"):
            block.insert_before(" ")
            block.insert_after(" ")
    line = "".join(lines_of_row([[cell.text()] for cell in cells]))
    row.replace_with(f"{_LINE}{line.replace(chr(9), _TAB)}{_LINE}")


def _is_layout(cell: Any) -> bool:
    return cell.css_first(_NO_CELL_HOLDS) is not None or len(cell.text()) > _LONGEST_CELL


def _write_formulas(tree: Any) -> None:
    """Formulas become text, as they were written where the page says so. The picture of one has it
    beside it, hidden, or as its description."""
    for node in tree.css("script[type^='math/tex']"):
        node.replace_with(f" {node.text()} ")
    for node in tree.css("math"):
        written = node.css_first("annotation[encoding*=tex],annotation[encoding*=TeX]")
        found = node.attributes.get("alttext") or (written.text() if written else None)
        if found is None:
            for other in node.css("annotation,annotation-xml"):
                other.decompose()
            found = node.text()
        node.replace_with(f" {' '.join(found.split())} ")
    for node in tree.css("img[alt][class*=math],img[alt][class*=tex],img[alt].latex"):
        node.replace_with(f" {node.attributes.get('alt') or ''} ")


def _write_rubies(tree: Any) -> None:
    """A reading stands in brackets behind its characters, whether or not the page has them."""
    for node in tree.css("ruby rp"):
        node.decompose()
    for node in tree.css("ruby rt"):
        node.insert_before("(")
        node.insert_after(")")
