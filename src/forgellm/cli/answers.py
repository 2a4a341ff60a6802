"""An answer on standard output as it is made: plain text, or Markdown where that is a terminal.

A Markdown block is shown as it is typed while it is open, and once it is finished in its place as
it is meant. What a block is takes few rules here: blank lines end one, but not inside a fence.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

from forgellm.cli.terminal_text import TerminalText, clean
from forgellm.generation.session import Done, Token

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def print_answer(items: Generator[Token | Done]) -> Done:
    """Write an answer to standard output, and a newline, also where it is cut short.

    An exception, such as KeyboardInterrupt, stops the answer and goes on.
    """
    text = TerminalText()
    page: _Page = MarkdownPage() if _is_terminal() else _PlainPage()
    with closing(items):
        try:
            for item in items:
                if isinstance(item, Done):
                    return item
                page.write(text.clean(item.text))
        finally:
            page.close()
    raise AssertionError("an answer ends with Done")


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class _Page(Protocol):
    def write(self, text: str) -> None: ...

    def close(self) -> None: ...


class _PlainPage:
    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def close(self) -> None:
        print(flush=True)


class MarkdownPage:
    """Text in pieces, already free of control characters, on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self._console = console or Console(highlight=False)
        self._open = ""  # the block that is being written
        self._is_first = True

    def write(self, text: str) -> None:
        for line in text.replace("\t", "    ").splitlines(keepends=True):
            self._put(line)
            self._open += line
            if (end := end_of_block(self._open)) is not None:
                self._finish(self._open[:end], self._open[end:].lstrip("\n"))

    def close(self) -> None:
        if self._open.strip():
            self._finish(self._open, "")
        else:
            self._put("\n")

    def _finish(self, block: str, rest: str) -> None:
        """Show a finished block as Markdown where it and `rest` stand as they were typed."""
        rows = num_rows(self._open, self._console.width)
        if rows < self._console.height:  # else its beginning has left the screen, and it stays
            self._put("\r" + f"\x1b[{rows - 1}A" * (rows > 1) + "\x1b[J")
            self._console.print(_Markdown(block, is_first=self._is_first))
            self._put(rest)
        elif not rest and not self._open.endswith("\n"):
            self._put("\n")
        self._open, self._is_first = rest, False

    def _put(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


def end_of_block(text: str) -> int | None:
    """Where the first block of `text` ends, if it is finished: at a blank line or a closed fence."""
    fence, place = "", 0
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence:
            is_end = mark and mark[1].startswith(fence) and not line.strip().strip(fence[0])
            if is_end and line.endswith("\n"):
                return place + len(line)
        elif mark:
            fence = mark[1]
        elif not line.strip() and text[:place].strip() and line.endswith("\n"):
            return place
        place += len(line)
    return None


def num_rows(text: str, width: int) -> int:
    """How many rows of a terminal `text` takes."""
    from rich.cells import get_character_cell_size

    rows, column = 1, 0
    for character in text:
        if character == "\n":
            rows, column = rows + 1, 0
            continue
        size = get_character_cell_size(character)
        column += size
        if column > width:
            rows, column = rows + 1, size
    return rows


class _Markdown:
    """One block. Line ends stay, as models mean them; links do not become live."""

    def __init__(self, block: str, *, is_first: bool) -> None:
        is_code = any(_FENCE.match(line) for line in block.splitlines())
        self._text = block if is_code else block.strip("\n").replace("\n", "  \n")
        self._is_first = is_first

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.markdown import Markdown
        from rich.segment import Segment

        if not self._is_first:
            yield Segment.line()
        markdown = Markdown(self._text, hyperlinks=False, code_theme="ansi_dark")
        for segment in console.render(markdown, options):
            # Markdown has its own ways to write a character, such as &#8238;.
            yield Segment(clean(segment.text), segment.style, segment.control)
