"""What a page shows around its text, or does not show: navigation, anchors, hidden elements."""

from __future__ import annotations

import re
from typing import Any

_CONTENT = "main,article,[role=main],[role=article]"
_AROUND_CONTENT = (
    "nav,footer,aside,[role=navigation],[role=contentinfo],[role=complementary],[role=search]"
)
_UNSEEN = (
    "[hidden]:not([hidden=until-found]),a[aria-hidden=true],.katex-html,.MathJax_Preview,.linenos,"
    ".linenodiv,.lineno"
)
_NOT_DISPLAYED = re.compile(
    r"(^|;)\s*(display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE
)
_ROWS_OF_LINKS = ".navheader,.navfooter,.nav-panel,.rellinks,.prev-next-area"
_ANCHOR_SIGNS = frozenset("¶ # § 🔗 ⚓ ∞ \uf0c1".split())
_WAYS = frozenset("next prev previous up home".split())
_WAY_TEXT = re.compile(r"[^\w]*(next|prev|previous|up|home|top|contents|index)( page)?[^\w]*")
_LABEL = re.compile(r"\b(next|prev|previous|up|top)\s*:\W*$", re.IGNORECASE)
_WAY_KEYS = frozenset("n p u h".split())
_MOST_LINKS = 12
_LONGEST_ROW = 600  # characters
_LONGEST_LABEL = 80  # "Next: , Previous: , Up:", and a chapter's title between them


def drop_surroundings(tree: Any) -> None:
    """Takes out of a tree of selectolax what is no text of the page.

    Where a page marks its content, what it marks as none is left out. A page that marks nothing, or
    whose content is empty, is kept whole but for its rows of links to the pages before and behind
    it. So is a note or a footer inside the content.
    """
    _drop_unseen(tree)
    _drop_around_content(tree)
    _drop_ways(tree)


def _drop_unseen(tree: Any) -> None:
    for node in tree.css("[style]"):
        if _NOT_DISPLAYED.search(node.attributes.get("style") or ""):
            node.attrs["hidden"] = ""
    _drop_all(tree, _UNSEEN)
    for node in tree.css("a[href]"):
        text = node.text().strip()
        if text in _ANCHOR_SIGNS and "#" in (node.attributes.get("href") or ""):
            node.decompose()


def _drop_all(tree: Any, selector: str) -> None:
    """Outer ones first: what is inside is freed with them."""
    gone: set[int] = set()
    for node in tree.css(selector):
        if node.mem_id not in gone:
            gone.update(inner.mem_id for inner in node.css(selector))
            node.decompose()


def _drop_around_content(tree: Any) -> None:
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


def _drop_ways(tree: Any) -> None:
    """Rows of links such as "Prev Up Next", which generated manuals have above and below a page.

    They are known by their class, or by links that say where they lead: in `rel`, in a key, or by
    a word, of which there must be two. Nothing is taken that has other text to speak of, or all.
    """
    if tree.body is None:
        return
    found = {node.mem_id: node for node in tree.css(_ROWS_OF_LINKS)}
    rows: dict[int, bool] = {}
    for link in tree.css("a[href]"):
        if _is_way(link):
            row = _row_of(link, rows)
            if row is not None:
                found[row.mem_id] = row
    rest = len(_squeezed(tree.body)) - sum(len(_squeezed(node)) for node in found.values())
    if rest <= 0:
        return
    gone: set[int] = set()
    for node in found.values():
        gone.update(inner.mem_id for inner in node.css("*") if inner.mem_id != node.mem_id)
    for identity, node in found.items():
        if identity not in gone:
            node.decompose()


def _is_way(link: Any) -> bool:
    if _is_named_way(link):
        return True
    picture = link.css_first("img[alt]")
    shown = (picture.attributes.get("alt") or "") if picture is not None else ""
    if _WAY_TEXT.fullmatch(_squeezed(link).lower() or shown.lower()):
        return True
    before = link.prev  # "Next:" may stand before the link
    if before is not None and not _squeezed(before):
        before = before.prev
    return before is not None and _LABEL.search(_squeezed(before)) is not None


def _is_named_way(link: Any) -> bool:
    """Whether an attribute says that the link leads to a page beside this one."""
    rel = set((link.attributes.get("rel") or "").lower().split())
    return bool(_WAYS & rel) or (link.attributes.get("accesskey") or "-").lower() in _WAY_KEYS


def _row_of(link: Any, rows: dict[int, bool]) -> Any:
    """The largest element around a link that is a row of links; None if there is none. `rows` keeps
    what was found of elements, so that a large one is looked at once, not for each of its links."""
    row = None
    node = link.parent
    while node is not None and node.tag not in ("body", "main", "article", "html", "-document"):
        if node.mem_id not in rows:
            rows[node.mem_id] = _is_row(node)
        if not rows[node.mem_id]:
            break
        if node.tag != "a":
            row = node
        node = node.parent
    return row


def _is_row(node: Any) -> bool:
    text = _squeezed(node)
    links = node.css("a[href]")
    if len(text) > _LONGEST_ROW or len(links) > _MOST_LINKS:
        return False
    if len(text) - sum(len(_squeezed(link)) for link in links) > _LONGEST_LABEL:
        return False
    if node.css_first("h1,h2,h3,h4,pre"):
        return False
    ways = [link for link in links if _is_way(link)]
    least = 1 if any(_is_named_way(link) for link in ways) else 2
    return len(ways) >= least and 2 * len(ways) >= len(links)


def _squeezed(node: Any) -> str:
    return " ".join(node.text().split())
