"""Tables as text: a line for each row, a tab between its cells."""

from __future__ import annotations

from collections.abc import Sequence


def lines_of_row(cells: Sequence[Sequence[str]]) -> list[str]:
    """The line of a row whose cells hold these lines. A single cell, which some use as a frame
    around a page's text, keeps its lines."""
    if len(cells) == 1:
        return list(cells[0])
    line = "\t".join(" ".join(" ".join(lines).split()) for lines in cells).rstrip()
    return [line] if line else []
