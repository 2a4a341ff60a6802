"""Cuts a very long text where it makes no difference to its tokens.

Encoding a text at once takes some hundred times its size in memory and uses a single core.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

# Between two words, in front of the white space: tokenizers attach a space to the word after it.
_BORDER = re.compile(r"(?<=\w)(?=[ \n]\w)")
_CONTEXT_CHARACTERS = 200
_ATTEMPTS = 20


def split_text(text: str, limit: int, encode: Callable[[str], list[int]]) -> Iterator[str]:
    """Pieces of about `limit` characters whose ids, joined, are those of the whole text.

    A border is used only if encoding its surroundings with and without the cut agrees; a text
    without such borders (a tokenizer that marks the start of each text, for one) stays whole.
    """
    start = 0
    while len(text) - start > limit:
        border = _find_border(text, start + limit, encode)
        if border is None:
            break
        yield text[start:border]
        start = border
    yield text[start:]


def _find_border(text: str, earliest: int, encode: Callable[[str], list[int]]) -> int | None:
    for attempt, match in enumerate(_BORDER.finditer(text, earliest)):
        if attempt == _ATTEMPTS:
            return None
        border = match.start()
        before = text[max(0, border - _CONTEXT_CHARACTERS) : border]
        after = text[border : border + _CONTEXT_CHARACTERS]
        if encode(before) + encode(after) == encode(before + after):
            return border
    return None
