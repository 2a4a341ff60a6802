"""What a model says, shown as it comes and made safe for a terminal.

A terminal takes orders from the text that it shows: to move the cursor, to set the title, to write
the clipboard. A model's words must not give any.
"""

from __future__ import annotations

import unicodedata
from enum import Enum, auto

_ESC = "\x1b"
_CSI = "\x9b"
_STRING_STARTS = frozenset("\x90\x98\x9d\x9e\x9f")  # DCS, SOS, OSC, PM, APC as one character
_STRING_STARTS_AFTER_ESC = frozenset("PX]^_")
_STRING_ENDS = frozenset("\x07\x9c\n")
# These reorder what stands around them, so that it reads as something else.
_BIDI_CONTROLS = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


class _State(Enum):
    TEXT = auto()
    ESCAPE = auto()  # after ESC
    CONTROL_SEQUENCE = auto()  # after ESC [
    STRING = auto()  # after ESC ] and its kin


class TerminalText:
    """Text in pieces, without control characters (but newline and tab) and escape sequences.

    A sequence may be split over pieces. One that never ends takes at most its line with it.
    """

    def __init__(self) -> None:
        self._state = _State.TEXT

    def clean(self, piece: str) -> str:
        return "".join(character for character in piece if self._is_shown(character))

    def _is_shown(self, character: str) -> bool:
        if character == _ESC:
            self._state = _State.ESCAPE
            return False
        if self._state is _State.STRING:
            if character in _STRING_ENDS:
                self._state = _State.TEXT
            return character == "\n"
        if character == _CSI:
            self._state = _State.CONTROL_SEQUENCE
        elif character in _STRING_STARTS:
            self._state = _State.STRING
        elif self._state is _State.ESCAPE and " " <= character <= "~":
            self._state = _after_escape(character)
            return False
        elif self._state is _State.CONTROL_SEQUENCE and " " <= character <= "~":
            if character >= "@":
                self._state = _State.TEXT
            return False
        else:
            self._state = _State.TEXT
        return _is_plain(character)


def clean(text: str) -> str:
    """A whole text, as `TerminalText` gives it."""
    return TerminalText().clean(text)


def _after_escape(character: str) -> _State:
    if character == "[":
        return _State.CONTROL_SEQUENCE
    if character in _STRING_STARTS_AFTER_ESC:
        return _State.STRING
    if character <= "/":  # an intermediate: the sequence goes on
        return _State.ESCAPE
    return _State.TEXT


def _is_plain(character: str) -> bool:
    if character in _BIDI_CONTROLS:
        return False
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
