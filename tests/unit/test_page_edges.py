"""Running heads, feet and page numbers are left out, and nothing that only looks like them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from forgellm.data.cleaning.boilerplate import EdgeLines, repeated_over_pages, without_lines
from forgellm.data.reading.page_edges import edge_lines
from forgellm.data.reading.pdf import read_pdf
from paper import pdf, placed_pdf

WORDS = [f"word{letter}{other}" for letter in "abcdefghij" for other in "klmnopqrst"]


def body(number: int, lines: int = 5) -> list[str]:
    rng = random.Random(number)
    return [" ".join(rng.choices(WORDS, k=6)) for _ in range(lines)]


def left(pages: list[list[str]]) -> list[list[str]]:
    gone = {place for line in edge_lines(pages) for place in line.places}
    return [[t for m, t in enumerate(lines) if (n, m) not in gone] for n, lines in enumerate(pages)]


def text_of(folder: Path, content: bytes) -> str:
    (folder / "a.pdf").write_bytes(content)
    ((_, text),) = read_pdf(folder / "a.pdf", lambda reason, number: None)
    return text


@pytest.mark.parametrize(
    ("head", "foot"),
    [
        (["Guild report"], ["{n}"]),
        (["Guild report", "Of mills {n}"], []),
        ([], ["- {n} -"]),
        ([], ["Page {n} of 20"]),
        ([], ["Seite {n}"]),
        ([], ["3-{n}"]),
        (["{n}  Chapter 3. Of mills"], ["printed 2024"]),
    ],
)
def test_heads_feet_and_numbers_of_pages_are_found(head: list[str], foot: list[str]) -> None:
    pages = []
    for number in range(9):
        around = [[line.format(n=number + 4) for line in lines] for lines in (head, foot)]
        pages.append([*around[0], *body(number), *around[1]])
    assert left(pages) == [body(number) for number in range(9)]


def test_heads_may_change_with_the_side_and_the_chapter_and_numbers_may_be_roman() -> None:
    pages = [[f"{'i' * (n + 1)}", *body(n)] for n in range(3)]
    for n in range(3, 23):
        chapter = 1 + n // 6
        head = f"{n} Of mills and weirs" if n % 2 else f"Chapter {chapter}: {WORDS[chapter]} {n}"
        pages.append([head, *body(n)])
    assert left(pages) == [body(n) for n in range(23)]


def test_two_pages_can_have_numbers_and_one_page_cannot() -> None:
    assert left([[*body(0), "1"], [*body(1), "2"]]) == [body(0), body(1)]
    assert left([[*body(0), "1"]]) == [[*body(0), "1"]]
    assert left([["1"], ["2"], ["3"]]) == [["1"], ["2"], ["3"]]


@pytest.mark.parametrize(
    "lines",
    [
        # Inside the page.
        ["first {w}", "second {w}", "Grain   Tons", "{n}", "last {w}"],
        # Code at the borders: numbered lines, and braces that stand at many of them.
        ["{n} {{", "x = {w};", "return {w};", "{n}{n} }}"],
        ["}}", "x = {w};", "y = {w};", "{{"],
        # Numbers of a table, which do not count the pages.
        ["{r}", "{w} grew", "{w} fell", "{r}"],
        # A sentence that begins with some page's number.
        ["{r} ships {w}", "{w} lay", "{w} sank", "in the {r} harbours {w}"],
    ],
)
def test_what_only_looks_like_it_stays(lines: list[str]) -> None:
    rng = random.Random(3)
    pages = []
    for number in range(1, 13):
        values = {"n": number, "w": WORDS[number], "r": rng.randrange(100, 999)}
        pages.append([line.format(**values) for line in lines])
    assert left(pages) == pages


def test_a_head_that_some_pages_have_stays() -> None:
    pages = [["Results" if n % 5 == 0 else f"On {WORDS[n]}", *body(n)] for n in range(20)]
    assert left(pages) == pages


def test_a_pdf_comes_without_them_and_sentences_go_on(tmp_path: Path) -> None:
    pages = [
        "Harbour handbook\nThe crane lifts the bar\n7 {\nand 136 }\nlow\n12",
        "Harbour handbook\nThe lights are lit at dusk and the light-\n13",
        "Harbour handbook\nhouse is seen far out.\nIts keeper sleeps.\n14",
    ]
    assert text_of(tmp_path, pdf(pages)) == (
        "The crane lifts the bar\n7 {\nand 136 }\nlow\n\n"
        "The lights are lit at dusk and the lighthouse is seen far out.\nIts keeper sleeps."
    )


def test_a_head_of_a_single_page_is_known_by_its_place(tmp_path: Path) -> None:
    def page(number: int, head: str, top: float = 700) -> list[tuple[float, float, str]]:
        lines = [(50.0, top - 12 * n, text) for n, text in enumerate(body(number))]
        return [(50.0, 740.0, head), *lines] if head else lines

    pages = [page(n, "Of weirs") for n in range(8)]
    pages += [page(8, "Of a single sluice"), page(9, "", top=740)]
    found = text_of(tmp_path, placed_pdf(pages)).split("\n\n")
    assert found == ["\n".join(body(n)) for n in range(10)]


def test_dots_of_a_contents_list_are_a_tab(tmp_path: Path) -> None:
    lines = [
        "1 Mills . . . . . . . . . . . 4",
        "2 Weirs.............xii",
        "And so on ... 5",
        "Wait...",
    ]
    expected = "1 Mills\t4\n2 Weirs\txii\nAnd so on ... 5\nWait..."
    assert text_of(tmp_path, pdf(["\n".join(lines)])) == expected


def test_pages_of_a_text_are_divided_by_form_feeds() -> None:
    made = [["RFC 9999   Mills", "", *body(n), "", f"Miller   [Page {n}]"] for n in range(1, 8)]
    text = "\n\f".join("\n".join(page) for page in made)
    numbers = [n for line in repeated_over_pages(text) for n in line.numbers]
    kept = without_lines(text, numbers)
    assert len(numbers) == 14 and "Mills" not in kept and "Page" not in kept
    assert all(line in kept for n in range(1, 8) for line in body(n))


def test_lines_that_the_documents_of_one_folder_share_are_found_among_many_others() -> None:
    edges = EdgeLines()
    documents = {f"manual/{n}.html": ["Prev Up Next", *body(n, 9)] for n in range(10)}
    documents |= {f"notes/{n}.html": [f"On {WORDS[n]}", *body(n, 9)] for n in range(90)}
    for file, lines in documents.items():
        edges.add(file, "\n".join(lines))
    found = {file: edges.repeated_in(file, "\n".join(lines)) for file, lines in documents.items()}
    assert {file for file, lines in found.items() if lines} == {
        f"manual/{n}.html" for n in range(10)
    }
    assert found["manual/3.html"][0].numbers == [1]
    assert found["manual/3.html"][0].reason == "at the edge of 10 of 10 documents in manual"
