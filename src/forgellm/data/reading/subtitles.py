"""Subtitles: what is said, without numbers, times and marks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from forgellm.data.reading.reader import SkipRow, decode

_TIMES = re.compile(r"\s*(\d+:)?\d{1,2}:\d{2}[.,]\d{3}\s*-->")
_MARKS = re.compile(r"<[^>]{0,100}>|\{\\[^}]{0,100}\}")


def read_subtitles(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    """A line of text for each line shown. Captions that roll show a line several times: it is taken
    once."""
    said: list[str] = []
    for block in re.split(r"\n\s*\n", decode(path.read_bytes()).replace("\r\n", "\n")):
        lines = block.strip("\n").split("\n")
        timed = next((number for number, line in enumerate(lines) if _TIMES.match(line)), None)
        for line in lines[timed + 1 :] if timed is not None else []:
            text = _MARKS.sub("", line).strip()
            if text and text not in said[-2:]:
                said.append(text)
    yield None, "\n".join(said)
