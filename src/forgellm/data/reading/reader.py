"""What a reader is: a function from a file to documents; and how bytes become text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from pathlib import Path

SkipRow = Callable[[str, int], None]
"""Called with a reason and a line, row, page or message number, from 1, for each that is left out."""

Reader = Callable[[Path, SkipRow], Iterator[tuple[int | None, str]]]
"""Yields (line, row or message number where a file holds several documents, text) without loading
more of the file than one document, where the format allows. Raises Unreadable or OSError."""

# What nobody sees in a text: control characters but tab and line feed, halves of UTF-16 pairs, the two
# code points that are no characters, and the soft hyphen, which says where a word may be divided.
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\ud800-\udfff\ufffe\uffff]")
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85]")
_NOT_TEXT = "not UTF-8, nor UTF-16 with a byte order mark"


class Unreadable(Exception):
    """The file, or what is left of it, yields no text; the message is the reason."""


def reason_of(error: Unreadable | UnicodeDecodeError | OSError) -> str:
    """What the user is told of a file that could not be read."""
    if isinstance(error, OSError):
        return f"cannot be opened: {error.strerror}"
    return _NOT_TEXT if isinstance(error, UnicodeDecodeError) else str(error)


def only_text(text: str) -> str:
    """`text` without control characters and soft hyphens, its lines ended by line feeds."""
    return _NO_TEXT.sub("", _LINE_ENDS.sub("\n", text))


def decode(raw: bytes) -> str:
    """The text as written, less a byte order mark. Raises Unreadable."""
    return decode_as(raw, encoding_of(raw[:2]))


def decode_as(raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        raise Unreadable(_NOT_TEXT) from None


def encoding_of(head: bytes) -> str:
    """The encoding of a file that begins with these two bytes."""
    return "utf-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
