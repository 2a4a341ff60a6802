"""What a reader is: a function from a file to documents; and how bytes become text."""

from __future__ import annotations

import codecs
import errno
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

SkipRow = Callable[[str, int], None]
"""Called with a reason and a line, row, page or message number, from 1, for each that is left out."""

Reader = Callable[[Path, SkipRow], Iterator[tuple[int | None, str]]]
"""Yields (line, row or message number where a file holds several documents, text) without loading
more of the file than one document, where the format allows. Raises Unreadable or OSError."""

HEAD_BYTES = 65_536
"""As many of a file's first bytes tell its encoding."""

NOT_TEXT = "not text: NUL characters in it"

# What nobody sees in a text: control characters but tab and line feed, halves of UTF-16 pairs, the two
# code points that are no characters, and the soft hyphen, which says where a word may be divided.
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\ud800-\udfff\ufffe\uffff]")
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85]")
_MARKS = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LEAST_SHARE = 1 / 8  # of the characters are Latin letters, digits, spaces or signs
_UNMARKED = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_CONTROLS = re.compile("[\x01-\x08\x0b\x0e-\x1f\x7f]")
_NO_CHARACTERS = {"Cc", "Cn", "Co", "Cs"}
_UNDECODABLE = "\udc80"
_HALVES = re.compile("[\ud800-\udfff]")


class Unreadable(Exception):
    """The file, or what is left of it, yields no text; the message is the reason."""


class Passing(Unreadable):
    """The file could not be read for a reason outside it, and may be at another time; the message is
    the reason. `is_final`: it was tried as often as it may be."""

    is_final = False


# Of these the file, its name or its owner is the cause: another attempt would end alike.
_OF_THE_FILE = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
    | {errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG, errno.EOVERFLOW}
)


def passing_reason(error: OSError) -> str | None:
    """Why a file cannot be read just now; None where the failure will not pass by itself, as that of
    a library that reports broken content in this way, without a number."""
    if error.errno is None or error.errno in _OF_THE_FILE:
        return None
    return f"cannot be read: {error.strerror}"


def reason_of(error: Unreadable | UnicodeDecodeError | OSError) -> str:
    """What the user is told of a file that could not be read."""
    if isinstance(error, OSError):
        return f"cannot be opened: {error.strerror}"
    if not isinstance(error, UnicodeDecodeError):
        return str(error)
    if error.encoding.startswith("utf-8"):
        return "not UTF-8, nor UTF-16 or UTF-32: save it as UTF-8"
    return f"broken {error.encoding.upper()}: save it as UTF-8"


def only_text(text: str) -> str:
    """`text` without control characters and soft hyphens, its lines ended by line feeds."""
    return _NO_TEXT.sub("", _LINE_ENDS.sub("\n", text))


def decode(raw: bytes) -> str:
    """The text as written, less a byte order mark. Raises Unreadable."""
    encoding = encoding_of(raw[:HEAD_BYTES])
    if encoding == "utf-8-sig" and b"\0" in raw:
        raise Unreadable(NOT_TEXT)
    text = decode_as(raw, encoding)
    if "\0" in text:
        raise Unreadable(NOT_TEXT)
    return text


def decode_as(raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise Unreadable(reason_of(error)) from None
    except LookupError:
        raise Unreadable(f"its encoding {encoding!r} is not known") from None


def open_rows(path: Path, newline: str) -> IO[str]:
    """The file as text of which a part that cannot be decoded costs its row alone: a lone half of a
    pair stands in its place, which `is_decoded` finds."""
    with path.open("rb") as file:
        encoding = encoding_of(file.read(HEAD_BYTES))
    return path.open(encoding=encoding, errors=_MARKED, newline=newline)


def is_decoded(text: str) -> bool:
    return _HALVES.search(text) is None


def encoding_of(head: bytes) -> str:
    """The encoding of a file that begins with these bytes: as its mark says, or else as the places
    of its NUL bytes show, and otherwise UTF-8, which it then may not be."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" not in head or _is_utf8_with_a_few(head):
        return "utf-8-sig"
    return next((encoding for encoding in _UNMARKED if _is_in(head, encoding)), "utf-8-sig")


def _is_utf8_with_a_few(head: bytes) -> bool:
    """Whether the NUL bytes are strays in text that is UTF-8 otherwise."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return 4 * head.count(0) < len(head) and _CONTROLS.search(text) is None


def _is_in(head: bytes, encoding: str) -> bool:
    """Whether the bytes are characters in use, with NUL bytes where common ones have them."""
    width = 4 if "32" in encoding else 2
    first, last = head[0::width].count(0), head[width - 1 :: width].count(0)
    high, low = (last, first) if encoding.endswith("le") else (first, last)
    # A stray NUL or two are none: nearly any bytes are some rare characters in UTF-16.
    if high <= low or high < len(head) // width * _LEAST_SHARE:
        return False
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head, len(head) < HEAD_BYTES)
    except UnicodeDecodeError:
        return False
    return all(char in "\t\n\r\f" or unicodedata.category(char) not in _NO_CHARACTERS for char in set(text))  # fmt: skip


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _UNDECODABLE, error.end


_MARKED = "forgellm.marked"
codecs.register_error(_MARKED, _mark)
