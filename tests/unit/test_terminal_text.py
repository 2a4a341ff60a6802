"""Nothing that a model says can give orders to a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgellm.cli.terminal_text import TerminalText, clean

HARMFUL = "\x00\x07\x08\x0d\x1b\x7f\x85\x90\x9b\x9d\x9c\u061c\u200e\u202e\u2066\u2069"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Grüße, 木 🐢\n\ttab", "Grüße, 木 🐢\n\ttab"),
        ("a\x1b[31mred\x1b[0m b", "ared b"),
        ("a\x1b[2J\x1b[1;1Hb", "ab"),
        ("a\x9b31mred", "ared"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;cm0gLXJm\x1b\\b", "ab"),
        ("a\x9d52;c;cm0gLXJm\x9cb", "ab"),
        ("a\x1bPdevice\x1b\\b\x1b_apc\x1b\\c\x1b^pm\x1b\\d\x1bXsos\x1b\\e", "abcde"),
        ("a\x1b(0b\x1bcc\x1b7d", "abcd"),
        ("over\rwritten\x08\x08\x7f", "overwritten"),
        ("a\x00\x07\x0b\x0c\x85b", "ab"),
        ("if \u202eresu\u202c \u2066x\u2069 \u200e\u200f\u061c", "if resu x "),
        ("a\ud800b", "ab"),
    ],
)
def test_orders_to_the_terminal_are_left_out(said: str, shown: str) -> None:
    assert clean(said) == shown


@pytest.mark.parametrize(
    "start", ["\x1b", "\x1b[", "\x1b[12;", "\x1b]0;title", "\x1bPdata", "\x9d"]
)
def test_a_sequence_that_never_ends_takes_no_more_than_its_line(start: str) -> None:
    assert clean(f"before{start}\nnext line") == "before\nnext line"


def test_a_sequence_inside_a_sequence_is_left_out_too() -> None:
    assert clean("a\x1b]0;title\x1b[31mb\x1b[3\x1b[1mc") == "abc"
    assert clean("a\x1b\x1b[31mb") == "ab"


@given(st.lists(st.text(st.sampled_from("ab \n;0[]P\\mc(" + HARMFUL), max_size=6), max_size=8))
def test_pieces_give_what_the_whole_gives(pieces: list[str]) -> None:
    text = TerminalText()
    shown = "".join(text.clean(piece) for piece in pieces)
    assert shown == clean("".join(pieces))
    assert not set(shown) & set(HARMFUL)
    assert shown.count("\n") == "".join(pieces).count("\n")


@given(st.text())
def test_text_without_control_characters_is_kept(text: str) -> None:
    plain = "".join(character for character in text if character.isprintable())
    assert clean(plain) == plain
