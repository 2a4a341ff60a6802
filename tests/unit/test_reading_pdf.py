"""What a PDF's text is made of: whole words, no control characters, signs of formulas as signs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forgellm.data.reading.divided_words import DIVIDED, join_divided_words
from forgellm.data.reading.pdf import read_pdf
from forgellm.data.reading.tex_fonts import character_of
from paper import pdf, placed_pdf


def text_of(folder: Path, content: bytes) -> str:
    path = folder / "a.pdf"
    path.write_bytes(content)
    ((_, text),) = read_pdf(path, lambda reason, number: None)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\ufffe\uffff]", text)
    return text


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("The light-\nhouse keeper", "The lighthouse keeper"),
        ("A float-\ning-point unit", "A floating-point unit"),
        ("It is user-\ndefined. A user-defined name.", "It is user-defined. A user-defined name."),
        ("Bare-\nfoot. They are barefoot.", "Barefoot. They are barefoot."),
        # Both forms are known: the more frequent one.
        ("an on-\nline shop, online, on-line, online", "an online shop, online, on-line, online"),
        # No such word is known, but others of its kind.
        (
            "both port-\nspecific; a port; quay-specific",
            "both port-specific; a port; quay-specific",
        ),
        ("Jean-\nPaul and X-\nray and 7-\nbit", "Jean-Paul and X-ray and 7-bit"),
        ("the pre-\nand post-war years", "the pre- and post-war years"),
        ("run with --dry-\nrun or /etc/my-\nfile", "run with --dry-run or /etc/my-file"),
        ("HAR-\nBOUR", "HARBOUR"),
        ("a list:\n- one\n- two -\nthree", "a list:\n- one\n- two -\nthree"),
    ],
)
def test_words_divided_at_a_lines_end(tmp_path: Path, lines: str, expected: str) -> None:
    assert text_of(tmp_path, pdf([lines])) == expected


def test_soft_hyphens_divide_at_a_lines_end_and_are_printed_within_one(tmp_path: Path) -> None:
    content = pdf(["The light\xad\nhouse is twenty\xadfold"], "/WinAnsiEncoding")
    assert text_of(tmp_path, content) == "The lighthouse is twenty-fold"


def test_words_divided_at_a_pages_end_and_at_a_columns_end(tmp_path: Path) -> None:
    assert text_of(tmp_path, pdf(["So the light-", "house burnt."])) == "So the lighthouse burnt."
    columns = [
        [(50, 700 - 12 * n, line) for n, line in enumerate(["The har-", "bour and the break-"])]
        + [
            (320, 700 - 12 * n, line) for n, line in enumerate(["water are of well-", "known age."])
        ],
        [(50, 700, "A well-known thing.")],
    ]
    found = text_of(tmp_path, placed_pdf(columns))
    assert "The harbour and the breakwater are of well-known age." in " ".join(found.split())


def test_a_hyphen_before_a_line_that_nothing_marks_is_joined_by_other_places_alone() -> None:
    assert join_divided_words("sea-\nfaring") == "sea-\nfaring"
    assert join_divided_words("sea-\nfaring, seafaring") == "seafaring, seafaring"
    assert join_divided_words("sea-\nfaring, sea-faring") == "sea-faring, sea-faring"
    assert join_divided_words(f"sea{DIVIDED}\nfaring") == "seafaring"
    # Halves of other divided words are no words of the text.
    assert join_divided_words(f"sea{DIVIDED}faring sea{DIVIDED}") == "seafaring sea-"


def test_joining_takes_linear_time_on_hostile_text() -> None:
    join_divided_words(f"a{DIVIDED}" * 100_000)
    join_divided_words("a-\n" * 100_000)
    join_divided_words("a" * 200_000 + "-\n" + "b" * 200_000)


def test_ligatures_are_letters_and_other_characters_stay(tmp_path: Path) -> None:
    differences = "<< /Type /Encoding /Differences [128 /fi /fl /twosuperior /onehalf] >>"
    assert text_of(tmp_path, pdf(["\x80nd \x81ow m\x82 \x83"], differences)) == "find flow m² ½"


def test_signs_of_tex_fonts_are_not_control_characters(tmp_path: Path) -> None:
    assert text_of(tmp_path, pdf(["a \x12x\x13 \x02y\x03"], font="ABCDEF+CMEX10")) == "a (x) [y]"
    assert text_of(tmp_path, pdf(["\x0cnd \x0eciently"], font="CMR10")) == "find fficiently"
    assert text_of(tmp_path, pdf(["x \x14 y"], font="CMSY7")) == "x ≤ y"
    # What nobody knows is left out.
    assert text_of(tmp_path, pdf(["a\x05b\x1fc"], font="Strange")) == "abc"


@pytest.mark.parametrize("font", ["CMR10", "CMTT9", "CMMI7", "CMSY10", "CMEX10", "SFRM1000"])
def test_each_tex_encoding_has_a_printable_character_for_each_number(font: str) -> None:
    found = [character_of(font, code) for code in range(32)]
    assert all(text is not None and (not text or text.isprintable()) for text in found)
    assert sum(bool(text) for text in found) >= 31
