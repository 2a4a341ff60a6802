"""Words that a line's end divides: joined again, with or without their hyphen.

A hyphen at a line's end may belong to the word (`user-defined`) or to the line alone. The rest of
the document tells: the form that it has elsewhere is taken.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

DIVIDED = "\u00ad"
"""Stands where a word is divided, for the hyphen that was printed there."""

_PLACE = re.compile(r"(?<=[^\W_])(?:(\u00ad)[ \n\f]*|[-\u2010](\n|\f))(?=[^\W_])")
_WORD = re.compile(r"[^\W_]+(?:['’\-\u2010\u2011][^\W_]+)*")
_LETTERS = re.compile(r"[^\W_]+")
_HYPHENS = str.maketrans("\u2010\u2011", "--")
_BEFORE = re.compile(r"[^\s\u00ad]+$")
_LONGEST_WORD = 80
_LONG_WORD = 4  # letters; shorter ones are too often a part of another
_ENDS = tuple(hyphen + end for hyphen in (DIVIDED, "-", "\u2010") for end in "\n\f") + (DIVIDED,)
_NO_WORD = re.compile(r"^-|[\d/\\@.:=_<>#%&]")  # an option, a path, a name in code
_LINKS = frozenset({"and", "or", "und", "oder"})  # "two- and threefold"


def join_divided_words(text: str) -> str:
    """`text`, with lines ended by a line feed and pages by a form feed, without divided words.

    A word is joined if its joined form occurs elsewhere in the text, and keeps its hyphen if that
    form does; the more frequent one wins. Where neither does, its second half may stand behind the
    hyphen of other words, which keeps it. Else it is joined if it was marked as divided (`DIVIDED`)
    or is divided by the end of a page; another hyphen at a line's end stays.
    """
    if not _PLACE.search(text):
        return text.replace(DIVIDED, "-")
    known = _Known.of(text)

    def joined(place: re.Match[str]) -> str:
        before = _BEFORE.search(text, max(0, place.start() - _LONGEST_WORD), place.start())
        after = _LETTERS.match(text, place.end())
        assert before is not None and after is not None  # the pattern looked
        if after[0].casefold() in _LINKS:
            return "- "
        is_marked = place[1] is not None or place[2] == "\f"
        keeps = _keeps_hyphen(before[0], after[0], is_marked, known)
        return place[0] if keeps is None else "-" if keeps else ""

    # A mark that no word follows has nothing to be joined with: it was a hyphen.
    return _PLACE.sub(joined, text).replace(DIVIDED, "-")


class _Known(NamedTuple):
    """Words of a text without case, less the halves of divided ones.

    Attributes:
        ends: what stands behind the last hyphen of words that have one: `defined`, `based`.
    """

    words: Counter[str]
    ends: Counter[str]

    @classmethod
    def of(cls, text: str) -> _Known:
        known = cls(Counter(), Counter())
        for word in _WORD.finditer(text):
            if text.startswith(_ENDS, word.end()) or text.endswith(_ENDS, 0, word.start()):
                continue
            written = word[0].translate(_HYPHENS).casefold()
            known.words[written] += 1
            start, hyphen, end = written.rpartition("-")
            if start and hyphen:
                known.ends[end] += 1
        return known


def _keeps_hyphen(before: str, after: str, is_marked: bool, known: _Known) -> bool | None:
    """None leaves the place as it is."""
    if before[-1].isdigit() or after[0].isdigit():
        return True
    end = after.casefold()
    whole = re.split(r"[^\w'’\-\u2010\u2011]", before)[-1].translate(_HYPHENS).casefold()
    part = whole.rpartition("-")[2]
    num_joined = max(known.words[whole + end], known.words[part + end])
    num_hyphened = max(known.words[f"{whole}-{end}"], known.words[f"{part}-{end}"])
    if num_joined != num_hyphened:
        return num_hyphened > num_joined
    is_name = after[0].isupper() and not before[-1].isupper()
    if _NO_WORD.search(before) or is_name or len(part) == 1:
        return True
    if known.words[part] and known.ends[end] and min(len(part), len(end)) >= _LONG_WORD:
        return True  # `system-specific`, where other things are specific too
    if is_marked:
        return False
    return True if num_hyphened else None
