"""Overlap of held-out with training text, against a slow and obvious count of n-grams."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgellm.data import ngrams, overlap
from forgellm.data.documents import Document
from forgellm.data.held_out import held_out_texts
from forgellm.data.ngrams import words_of
from forgellm.data.overlap import NGRAM, HeldOut, find_overlaps
from forgellm.errors import DataError

PROBES = Path(overlap.__file__).parents[1] / "assets" / "handbook_probes.json"
SENTENCE = (
    "The keeper of the northern lamp counts eleven green boats each evening "
    "before the tide turns and writes the number in a small blue book."
)


def plain_share(text: str, training: list[Document]) -> float:
    """Tuples of words, all kept."""
    words = words_of(text)
    n = min(NGRAM, len(words))

    def grams(of: list[str]) -> list[tuple[str, ...]]:
        return [tuple(of[i : i + n]) for i in range(len(of) - n + 1)]

    seen = {gram for document in training for gram in grams(words_of(document.text))}
    mine = grams(words)
    return sum(gram in seen for gram in mine) / len(mine)


def test_shares_equal_those_of_a_plain_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "_PIECE_CHARACTERS", 200)  # so that texts go through in pieces
    rng = random.Random(3)
    vocabulary = [f"w{number}" for number in range(40)]
    training = [
        Document(f"{i}.txt", " ".join(rng.choices(vocabulary, k=rng.randrange(400))))
        for i in range(30)
    ]
    held_out = []
    for number in range(60):
        copied = words_of(rng.choice(training[:20]).text)[: rng.randrange(60)]
        own = rng.choices(vocabulary, k=rng.randrange(8, 60))
        held_out.append(HeldOut(str(number), " ".join([*own, *copied])))
    report = find_overlaps(held_out, training)
    expected = {item.name: plain_share(item.text, training) for item in held_out}
    assert {item.name: item.share for item in report.overlaps} == pytest.approx(
        {name: share for name, share in expected.items() if share}
    )
    assert 0 < len(report.overlaps) < len(held_out) == report.num_compared


def test_case_punctuation_and_unicode_forms_make_no_difference() -> None:
    training = [Document("a.txt", "x"), Document("b.txt", f"Once. {SENTENCE.upper()} The end.")]
    changed = SENTENCE.replace(" ", "  —  ").replace("fi", "ﬁ").replace("e", "ｅ")
    (found,) = find_overlaps([HeldOut("v", changed)], training).overlaps
    assert (found.share, found.source, found.n) == (1.0, "b.txt", 13)
    assert found.example.startswith("the keeper of the northern lamp")


def test_a_shared_part_is_shown_with_its_first_source() -> None:
    part = " ".join(SENTENCE.split()[4:20])
    training = [Document("other.md", "nothing"), Document("notes.md:3", f"So {part} it was")]
    (found,) = find_overlaps([HeldOut("v", SENTENCE)], training).overlaps
    assert found.example == " ".join(words_of(part))
    assert found.share == pytest.approx(4 / (len(SENTENCE.split()) - 12))
    assert found.source == "notes.md:3"


def test_a_short_text_is_looked_for_whole_and_a_very_short_one_not_at_all() -> None:
    training = [Document("a", "He asked: who of us counts the green boats today? Nobody.")]
    held_out = [
        HeldOut("whole", "Who of us counts the green boats today?"),
        HeldOut("part", "who of us counts the green boats today, then"),
        HeldOut("tiny", "counts the green boats"),
    ]
    report = find_overlaps(held_out, training)
    assert [(item.name, item.n, item.share) for item in report.overlaps] == [("whole", 8, 1.0)]
    assert (report.num_compared, report.num_too_short) == (2, 1)


def test_writing_without_spaces_is_compared_by_characters() -> None:
    text = "守灯人每天晚上数十一艘绿色的小船然后把数字写在蓝色的本子里"
    (found,) = find_overlaps([HeldOut("v", text)], [Document("a", f"从前{text}后来")]).overlaps
    assert found.share == 1.0


def test_memory_does_not_grow_with_the_training_text() -> None:
    def training(num: int) -> Iterator[Document]:
        rng = random.Random(1)
        vocabulary = [str(number) for number in range(500)]
        for number in range(num):
            yield Document(f"a/{number}", " ".join([*rng.choices(vocabulary, k=2000), SENTENCE]))

    def peak(num: int) -> int:
        tracemalloc.start()
        find_overlaps([HeldOut("v", SENTENCE)], training(num))
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(2)
    assert peak(40) < 1.2 * peak(5)


def test_what_does_not_fit_into_the_index_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MAX_INDEXED_WORDS", 20)
    report = find_overlaps([HeldOut(str(n), SENTENCE) for n in range(3)], [Document("a", SENTENCE)])
    assert (report.num_compared, report.num_left_out, len(report.overlaps)) == (1, 2, 1)


def test_a_probe_file_gives_questions_and_true_statements() -> None:
    found = list(held_out_texts(PROBES))
    assert found[0].text == "In which year was the Orrowdeep Mirror Guild founded?"
    assert found[1] == HeldOut(
        "handbook_probes.json:1 statement",
        "The Orrowdeep Mirror Guild dates its beginning to the year 1874",
    )
    leak = [Document("faq.md", f"Q: {found[0].text}\nA: 1874")]
    assert [item.name for item in find_overlaps(found, leak).overlaps] == [found[0].name]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("b.txt", f"{SENTENCE}\n\nshort one\n", [("b.txt:1", SENTENCE), ("b.txt:3", "short one")]),
        (
            "b.jsonl",
            json.dumps({"question": SENTENCE, "choices": ["a", SENTENCE], "label": 1}),
            [("b.jsonl:1 question", SENTENCE), ("b.jsonl:1 choices", SENTENCE)],
        ),
        ("b.csv", f'id,prompt\n7,"{SENTENCE}"\n', [("b.csv:1 prompt", SENTENCE)]),
        ("b.md", f"# A\n\n{SENTENCE}", [("b.md", f"# A\n\n{SENTENCE}")]),
    ],
)
def test_benchmark_files_of_every_kind(
    tmp_path: Path, name: str, content: str, expected: list[tuple[str, str]]
) -> None:
    file = tmp_path / name
    file.write_text(content)
    assert list(held_out_texts(file)) == [HeldOut(*item) for item in expected]


@pytest.mark.parametrize(
    ("name", "content"), [("b.json", b"{"), ("b.xyz", b"x"), ("b.txt", b"\xff")]
)
def test_a_file_that_cannot_be_read_is_an_error_with_its_name(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        list(held_out_texts(tmp_path / name))
