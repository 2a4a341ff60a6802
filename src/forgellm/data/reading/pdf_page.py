"""The lines of a PDF's page, as they were printed: their text, and where they stand."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from forgellm.data.reading.divided_words import DIVIDED
from forgellm.data.reading.tex_fonts import character_of

# pdfium's signs for the hyphen of a word that goes on in the next line: in text, and in a range.
_HYPHEN, _HYPHEN_IN_RANGE = "\x02", "\ufffe"
_HYPHENS = _HYPHEN + _HYPHEN_IN_RANGE
_HYPHEN_SIGN = re.compile(f"[{_HYPHENS}]")
_ODD = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\ue000-\uf8ff\ufb00-\ufb06\ufffe\uffff]"  # private use: pieces
)
_LIGATURES = dict(zip("\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06", "ff fi fl ffi ffl st st".split(), strict=True))  # fmt: skip


class Line(NamedTuple):
    """A printed line.

    Attributes:
        text: with `DIVIDED` at its end where pdfium found that a word is divided.
        baseline: in points from the bottom of the page; 0 where it is not known.
    """

    text: str
    baseline: float = 0.0


class PageText:
    """A text page of pypdfium2, read line by line. Characters of unknown meaning are left out."""

    def __init__(self, page: Any) -> None:
        import pypdfium2.raw as pdfium

        self._pdfium = pdfium
        self._kept = page  # it frees what its pointer leads to
        self._page = page.raw
        self._text = page.get_text_bounded()
        self._characters = self._all_characters(page)

    def lines(self) -> list[Line]:
        lines = []
        position = 0
        for text in self._text.split("\r\n"):
            places = self._places(text, position)
            if places:
                position = places[-1] + 1
            lines += [self._line(*printed) for printed in self._printed(text, places)]
        return lines

    def _printed(self, text: str, places: Sequence[int]) -> Iterator[tuple[str, Sequence[int]]]:
        """pdfium writes a line and the next one as one line, where a hyphen ends the first."""
        start = 0
        for sign in _HYPHEN_SIGN.finditer(text):
            end = sign.end()
            if end < len(text) and self._is_hyphen(sign.start(), text, places):
                yield text[start:end], places[start:end]
                start = end
        yield text[start:], places[start:]

    def _is_hyphen(self, position: int, text: str, places: Sequence[int]) -> bool:
        """Whether a sign of pdfium's is one, and no glyph of this number."""
        if text[position] == _HYPHEN_IN_RANGE or not places:
            return True
        return bool(self._pdfium.FPDFText_IsHyphen(self._page, places[position]))

    def _line(self, text: str, places: Sequence[int]) -> Line:
        shown = _ODD.sub(lambda odd: self._shown(odd, places), text).strip(" ")
        if not shown or not places:
            return Line(shown)
        return Line(shown, self._baseline(places[len(text) - len(text.lstrip(" "))]))

    def _all_characters(self, page: Any) -> str:
        """A character for each that pdfium counts, so that a place in it is pdfium's index."""
        text: str = page.get_text_range().replace(_HYPHEN_IN_RANGE, _HYPHEN)
        count = page.count_chars()
        if len(text) == count:
            return text
        get = self._pdfium.FPDFText_GetUnicode
        return "".join(chr(get(self._page, index)) for index in range(count))

    def _places(self, text: str, position: int) -> Sequence[int]:
        """pdfium's indexes of a line's characters, looked for from `position` on; empty if lost."""
        characters = self._characters
        while characters.startswith("\r\n", position) and not text.startswith("\r"):
            position += 2
        if characters.startswith(text, position):
            return range(position, position + len(text))
        places = []
        for character in text:  # pdfium ends lines at raised figures in the one text alone
            position = characters.find(character, position)
            if position < 0:
                return ()
            places.append(position)
            position += 1
        return places

    def _shown(self, odd: re.Match[str], places: Sequence[int]) -> str:
        """What is printed for a character that is none of text."""
        character = odd[0]
        if character in _LIGATURES:
            return _LIGATURES[character]
        if character == DIVIDED:  # printed in the middle of a line it is a hyphen like others
            return DIVIDED if odd.end() == len(odd.string.rstrip(" ")) else "-"
        index = places[odd.start()] if places else -1
        if character in _HYPHENS and self._is_hyphen(odd.start(), odd.string, places):
            return DIVIDED
        known = character_of(self._font(index), ord(character)) if index >= 0 else None
        if known is None and (character == "\t" or "\ue000" <= character <= "\uf8ff"):
            return character
        return known or ""

    def _baseline(self, index: int) -> float:
        x, y = ctypes.c_double(), ctypes.c_double()
        self._pdfium.FPDFText_GetCharOrigin(self._page, index, x, y)
        return y.value

    def _font(self, index: int) -> str:
        name = ctypes.create_string_buffer(128)
        self._pdfium.FPDFText_GetFontInfo(self._page, index, name, 128, ctypes.c_int())
        return name.value.decode("utf-8", "replace")
