"""Subtitles: what is said, without numbers, times and marks."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from forgellm.data.reading.reader import SkipRow, decode, only_text

_TIMES = re.compile(
    r"\s*((?:\d+:)?\d{1,2}:\d{2}[.,]\d{3})\s*-->\s*((?:\d+:)?\d{1,2}:\d{2}[.,]\d{3})"
)
_MARKS = re.compile(r"<[^>]{0,100}>|\{\\[^}]{0,100}\}")


def read_subtitles(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    """A line of text for each line shown. Captions that roll show a line several times on end: it is
    taken once."""
    said: list[str] = []
    shown: list[str] = []
    shown_until = ""
    for block in re.split(r"\n\s*\n", only_text(decode(path.read_bytes()))):
        lines = block.strip("\n").split("\n")
        found = ((number, _TIMES.match(line)) for number, line in enumerate(lines))
        first, times = next(((number, match) for number, match in found if match), (0, None))
        if times is None:
            continue
        texts = [text for line in lines[first + 1 :] if (text := _text(line))]
        rolls = _comparable(times[1]) <= shown_until
        said += [text for text in texts if not (rolls and text in shown)]
        shown, shown_until = texts, _comparable(times[2])
    yield None, "\n".join(said)


def _text(line: str) -> str:
    return html.unescape(_MARKS.sub("", line)).replace("\xa0", " ").strip()


def _comparable(time: str) -> str:
    """A time that sorts as text, with or without hours."""
    *hours, minutes, seconds = time.replace(",", ".").split(":")
    return f"{(hours or ['0'])[0]:0>4}:{minutes:0>2}:{seconds}"
