"""Tables of the listing commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from forgellm.cli.terminal_text import clean

_PIPE_COLUMNS = 400  # so that grep and awk find a row in a line


def print_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """On a terminal cells are folded to its width; the columns of `right` are aligned there."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(clean, row))
    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    Console(highlight=False, markup=False, width=width).print(table)
