"""Markdown on a terminal: blocks are shown as they are typed, and then as they are meant."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from forgellm.cli.answers import MarkdownPage, end_of_block, num_rows

WIDTH, HEIGHT = 30, 10


class Screen:
    """What a terminal shows after the orders that a page gives: newlines, up, erase below."""

    def __init__(self, written: str) -> None:
        self.rows, self.row, self.column = [""], 0, 0
        for order, text in re.findall(r"(\x1b\[[\d;]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", written):
            self._obey(order) if order else [self._put(character) for character in text]

    def _obey(self, order: str) -> None:
        if order == "\n":
            self.row, self.column = self.row + 1, 0
            if self.row == len(self.rows):
                self.rows.append("")
        elif order == "\r":
            self.column = 0
        elif order.endswith("A"):
            self.row -= int(order[2:-1])
            assert self.row >= 0
        elif order.endswith("J"):
            self.rows[self.row] = self.rows[self.row][: self.column]
            del self.rows[self.row + 1 :]
        else:
            assert order.endswith("m"), order

    def _put(self, character: str) -> None:
        if self.column == WIDTH:
            self._obey("\n")
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
        self.column += 1

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows)


def shown(*pieces: str, height: int = HEIGHT) -> Screen:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=WIDTH, height=height, highlight=False
    )
    page = MarkdownPage(console)
    for piece in pieces:
        page.write(piece)
    page.close()
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert not set(written) & set("\x07\x9b\u202e")
    return Screen(written)


def test_blocks_become_markdown_where_they_stand() -> None:
    said = "Some **bold** text\nin two lines.\n\n- one\n- two\n\n```python\nx = 1\n```\nEnd."
    expected = "Some bold text\nin two lines.\n\n • one\n • two\n\n x = 1\n\nEnd.\n"
    assert re.sub(r"\n(\s*\n)+", "\n\n", shown(*said).text) == expected
    assert shown(said).text == shown(*said).text


def test_open_block_is_shown_as_it_is_typed() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=WIDTH, height=HEIGHT)
    page = MarkdownPage(console)
    page.write("Some **bo")
    assert console.file.getvalue() == "Some **bo"  # type: ignore[attr-defined]


def test_a_block_taller_than_the_screen_stays_as_it_was_typed() -> None:
    said = "\n".join(f"**{number}**" for number in range(20)) + "\n\nThe *end*"
    text = shown(*said, height=8).text
    assert "**0**\n" in text and "**19**\n" in text
    assert text.endswith("The end\n")


def test_an_empty_answer_is_one_line() -> None:
    assert shown().text == "\n"


def test_markdown_has_no_way_around_the_filter() -> None:
    assert "\u202e" not in shown("a &#8238;b &#27;[31m &#x9b;2J\n\n").text
    link = shown("[here](https://example.org/)").text
    assert "here" in link


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("one", None),
        ("one\n", None),
        ("one\n\n", 4),
        ("\n\none\n\ntwo", 6),
        ("```\na\n\nb\n", None),
        ("```\na\n\nb\n```\n", 13),
        ("````\n```\n\n````\nx", 15),
        ("~~~\n```\n~~~\n", 12),
    ],
)
def test_where_a_block_ends(text: str, end: int | None) -> None:
    assert end_of_block(text) == end


def test_wide_characters_count_twice_and_wrap_whole() -> None:
    assert num_rows("a" * 10, 10) == 1
    assert num_rows("a" * 11, 10) == 2
    assert num_rows("木" * 5, 10) == 1
    assert num_rows("a" + "木" * 5, 10) == 2
    assert num_rows("a\n\nb", 10) == 3


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.sampled_from("ab *`#->1.\n\t|"), max_size=8), max_size=12))
def test_however_an_answer_is_cut_the_same_is_shown(pieces: list[str]) -> None:
    assert shown(*pieces, height=1000).text == shown(*"".join(pieces), height=1000).text
