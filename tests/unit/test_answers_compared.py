"""Answers in a model's own words, probe files as people write them, and intervals."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from forgellm.errors import DataError
from forgellm.evaluation.answering import is_right
from forgellm.evaluation.intervals import error_of_mean, wilson_interval
from forgellm.evaluation.probe_files import read_probes


@pytest.mark.parametrize(
    ("said", "answers", "whole", "right"),
    [
        (" The  Miller.\n", ["the miller"], True, True),
        ("the miller's wife", ["the miller"], True, False),
        ("It was the miller, I think.", ["The miller"], False, True),
        ("He counted 1874 sacks", ["874"], False, False),
        ("e\u0301clair", ["\u00e9clair"], True, True),
        ("STRASSE", ["Stra\u00dfe"], True, True),
        ("3.5 kilometres", ["3.5"], False, True),
        ("35 kilometres", ["3.5"], False, False),
        ("そこは東京です", ["東京"], False, True),
        ("", ["x"], False, False),
        ("green or blue", ["red", "blue"], False, True),
        ("a.b", ["a+b"], False, False),
    ],
)
def test_answers_count_without_regard_to_form(
    said: str, answers: list[str], whole: bool, right: bool
) -> None:
    assert is_right(said, answers, whole=whole) is right


def test_questions_come_as_json_or_as_lines(tmp_path: Path) -> None:
    file = tmp_path / "probes.jsonl"
    file.write_text(
        '{"question": "Who?", "answer": ["a", "b"], "match": "exact"}\n\n'
        '{"stem": "It was", "answer": "c", "match": "contains"}\n'
        '{"question": "?", "stem": "s", "answer": "d", "distractors": ["e"]}\n'
    )
    exact, contains, choice = read_probes(file)
    assert (exact.answers, exact.match, exact.stem) == (("a", "b"), "exact", "")
    assert (contains.stem, contains.question) == ("It was", "")
    assert (choice.match, choice.options) == ("choice", ("d", "e"))


@pytest.mark.parametrize(
    "line",
    [
        '{"question": "?", "answer": "a", "match": "fuzzy"}',
        '{"question": "?", "answer": "", "match": "exact"}',
        '{"question": "?", "answer": [], "match": "exact"}',
        '{"question": 3, "answer": "a", "match": "exact"}',
        '{"answer": "a", "match": "exact"}',
        '{"question": "?", "stem": "s", "answer": "a", "distractors": []}',
        '{"question": "?", "stem": "s", "answer": ["a", "b"], "distractors": ["c"]}',
        '{"question": "?", "stem": "s", "answer": "a", "distractors": "bc"}',
        '["a"]',
    ],
)
def test_an_item_that_is_no_probe_is_a_clear_error(tmp_path: Path, line: str) -> None:
    file = tmp_path / "probes.jsonl"
    file.write_text(line)
    with pytest.raises(DataError, match="probe file"):
        read_probes(file)


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857, table I, method 3.
    for right, asked, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(right, asked) == pytest.approx((low, high), abs=6e-5)


def test_the_error_of_a_mean_is_the_spread_of_means() -> None:
    rng = random.Random(3)

    def draw() -> tuple[list[float], list[float]]:
        sizes = [rng.choice([10.0, 20.0, 60.0]) for _ in range(80)]
        return [rng.gauss(3 + size / 100, 0.5) for size in sizes], sizes

    means, errors = [], []
    for _ in range(400):
        values, sizes = draw()
        means.append(sum(v * s for v, s in zip(values, sizes, strict=True)) / sum(sizes))
        errors.append(error_of_mean(values, sizes) or math.nan)
    middle = sum(means) / len(means)
    spread = math.sqrt(sum((mean - middle) ** 2 for mean in means) / len(means))
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.15)
    assert error_of_mean([1.0]) is None
    assert error_of_mean([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
