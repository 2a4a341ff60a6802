"""HTML: the visible text, a line per block, without the navigation around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forgellm.data.reading.reader import SkipRow, Unreadable, decode, decode_as

_BLOCKS = (
    "address,article,aside,blockquote,br,dd,div,dl,dt,figcaption,figure,footer,form,h1,h2,h3,h4,h5,"
    "h6,header,hr,li,main,nav,ol,p,pre,section,table,tr,ul"
)
_CONTENT = "main,article,[role=main],[role=article]"
_AROUND_CONTENT = (
    "nav,footer,aside,[role=navigation],[role=contentinfo],[role=complementary],[role=search]"
)
_DECLARED = re.compile(
    rb"""(?:<meta[^>]{0,200}charset|<\?xml[^>]{0,200}encoding)\s*=\s*["']?([\w.:-]+)""",
    re.IGNORECASE,
)
# XHTML may close any element at once; for an HTML parser `<title/>` would swallow what follows.
_CLOSED_AT_ONCE = re.compile(
    r"<(?!(?:area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr)\b)"
    r"([a-zA-Z][\w:-]*)((?:\s[^<>]*)?)/>"
)


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
        return decode_as(raw, declared[1].decode("ascii"))


def text_of_html(markup: str) -> str:
    from selectolax.lexbor import LexborHTMLParser

    if "/>" in markup and ("<?xml" in markup[:200] or "http://www.w3.org/1999/xhtml" in markup):
        markup = _CLOSED_AT_ONCE.sub(r"<\1\2></\1>", markup)
    tree = LexborHTMLParser(markup)
    tree.strip_tags(["script", "style", "noscript", "template", "head"])
    _drop_surroundings(tree)
    # Block borders and the layout inside <pre> ride through the whitespace collapse as controls.
    for node in tree.css("pre"):
        node.replace_with(node.text().replace("\n", "\x1e").replace(" ", "\x1f").join("\x1e\x1e"))
    for node in tree.css(_BLOCKS):
        node.insert_before("\x1e")
        node.insert_after("\x1e")
    for node in tree.css("td,th"):
        node.insert_after(" ")
    return _lines(tree.body.text() if tree.body else "")


def _lines(body: str) -> str:
    lines = (re.sub(r"[ \t\r\n\f]+", " ", line).strip(" ") for line in body.split("\x1e"))
    return "\n".join(line for line in lines if line).replace("\x1f", " ")


def _drop_surroundings(tree: Any) -> None:
    """Where a page marks its content, leave out what it marks as none.

    A page that marks nothing, or whose content is empty, is kept whole, and so is a note or a
    footer inside the content.
    """
    contents = tree.css(_CONTENT)
    if not any(node.text(strip=True) for node in contents):
        return
    left_alone = {node.mem_id for content in contents for node in content.css(_AROUND_CONTENT)}
    for node in contents:  # what holds the content is no surrounding
        while node is not None and node.mem_id not in left_alone:
            left_alone.add(node.mem_id)
            node = node.parent
    for node in tree.css(_AROUND_CONTENT):  # outer ones first
        if node.mem_id not in left_alone:
            left_alone.update(inner.mem_id for inner in node.css(_AROUND_CONTENT))  # freed with it
            node.decompose()
