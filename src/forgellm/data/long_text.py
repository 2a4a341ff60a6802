"""Cuts a very long text where it makes no difference to its tokens.

Encoding a text at once takes some hundred times its size in memory and uses a single core.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain, islice

# Between two words, in front of the white space: tokenizers attach a space to the word after it.
# Where no such place holds, as in scripts without spaces, around any white space or full stop.
_BORDERS = (re.compile(r"(?<=\w)(?=[ \n]\w)"), re.compile(r"(?<=[\n。！？])(?=\S)|(?<=\S)(?=\s)"))
_CONTEXT_CHARACTERS = 200
_ATTEMPTS = 20


def split_text(text: str, limit: int, encode: Callable[[str], list[int]]) -> Iterator[str]:
    """Pieces of about `limit` characters whose ids, joined, are those of the whole text.

    A border is used only if encoding its surroundings with and without the cut agrees. A space may
    be left out where a tokenizer puts one in front of each text. A text without borders stays whole.
    """
    return split_parts(iter([text]), limit, encode)


def split_parts(
    parts: Iterator[str], limit: int, encode: Callable[[str], list[int]]
) -> Iterator[str]:
    """As `split_text`, of a text that comes in parts, without holding all of it."""
    kept = ""
    earliest = limit
    for part in chain(parts, [None]):
        to_come = 0 if part is None else _CONTEXT_CHARACTERS  # of the surroundings of a border
        kept += part or ""
        start = 0
        while len(kept) - start > earliest + to_come:
            border = _find_border(kept, start + earliest, len(kept) - to_come, encode)
            if border is None:
                earliest = len(kept) - start - to_come  # what has none is not searched again
                break
            yield kept[start : border[0]]
            start, earliest = border[1], limit
        kept = kept[start:]
    if kept:
        yield kept


def _find_border(
    text: str, earliest: int, latest: int, encode: Callable[[str], list[int]]
) -> tuple[int, int] | None:
    """Where the text before a cut ends, and where that after it begins."""
    for pattern in _BORDERS:
        for match in islice(pattern.finditer(text, earliest, latest), _ATTEMPTS):
            end = match.start()
            before = text[max(0, end - _CONTEXT_CHARACTERS) : end]
            after = text[end : end + _CONTEXT_CHARACTERS]
            whole, first = encode(before + after), encode(before)
            if first + encode(after) == whole:
                return end, end
            if after[0] == " " and first + encode(after[1:]) == whole:
                return end, end + 1
    return None
