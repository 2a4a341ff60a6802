"""What is taken from what a model says, where it stands in a document, and when two answers agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgellm.data.documents import Document, ReadReport, dataset_files
from forgellm.errors import Conflict, InvalidRequest
from forgellm.questions.agreement import NearDuplicates, agree, is_grounded
from forgellm.questions.asker import EndpointAsker
from forgellm.questions.journal import KEPT, Journal
from forgellm.questions.make import problem_of
from forgellm.questions.passages import passages_of, seeded_passages, sentence_spans
from forgellm.questions.prompts import Pair, answer_in, answering, knowing, pair_in, writing

TEXT = st.text(st.sampled_from("ab Z.!?。\n\r\t#-1\"'\u2028\x00é"), max_size=300)


@given(TEXT)
def test_spans_are_the_characters_they_name_and_lose_only_white_space(text: str) -> None:
    document = Document("a.md", text)
    spans = list(sentence_spans(document))
    assert all(text[span.start : span.end] == span.text != "" for span in spans)
    assert "".join("".join(span.text for span in spans).split()) == "".join(text.split())
    for passage in passages_of(document):
        assert text[passage.start : passage.end] == passage.text
        assert len(passage.text) <= 1100


def test_sentences_end_where_a_reader_would_say() -> None:
    text = '# The mule\n\nHe eats hay. "Why?" asked Osk. It costs 3.50 crowns.\n- one thing\n- another\n'
    found = [span.text for span in sentence_spans(Document("a", text))]
    assert found == ["# The mule", "He eats hay.", '"Why?" asked Osk.', "It costs 3.50 crowns.",
                     "- one thing", "- another"]  # fmt: skip


def test_a_text_without_borders_is_cut_and_gone_through_once() -> None:
    text = "a" * 1_500_000
    found = [span.text for span in sentence_spans(Document("a", text))]
    assert "".join(found) == text and max(map(len, found)) == 600


def test_passages_come_in_an_order_that_depends_on_the_seed_alone(tmp_path: Path) -> None:
    for number in range(30):
        text = f"Lamp {number} stands on the north pier and is lit at dusk by the keeper. " * 9
        (tmp_path / f"{number}.txt").write_text(text)
    first, again, other = (seeded_passages(tmp_path, seed, ReadReport()) for seed in (1, 1, 2))
    assert first == again
    assert first.chosen != other.chosen and sorted(first.chosen) == sorted(other.chosen)
    assert first.num_found == len(first.chosen) > 30


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Question: Who keeps it?\nAnswer: Ada.", Pair("Who keeps it?", "Ada.")),
        ("Sure!\n\n**Question:** Who\nkeeps it?\n**Answer:** Ada.\n\nText: x", Pair("Who keeps it?", "Ada.")),
        ("1. Q: a?\n   A: b\n2. Q: c?\n   A: d", Pair("a?", "b")),
        ("<think>Question: no?\nAnswer: no</think>Question: a?\r\nAnswer: b", Pair("a?", "b")),
        ("Question: a\x1b[31m?\nAnswer: b\x07\u202e", Pair("a?", "b")),
        ("Answer: b", None),
        ("Question: a?", None),
        ("Question:\nAnswer:", None),
        ("", None),
        ("<think>Question: a?\nAnswer: b", None),
        ("Question: " + "a" * 400 + "?\nAnswer: b", None),
        ("Question: a?\nAnswer: " + "b " * 400, None),
    ],
)  # fmt: skip
def test_a_pair_is_found_in_whatever_a_model_says(said: str, expected: Pair | None) -> None:
    assert pair_in(said) == expected


@given(st.text(st.sampled_from("Question: Aanswer\n\x1b[0m*<think></think>\ud800"), max_size=400))
def test_no_reply_breaks_the_parser(said: str) -> None:
    pair = pair_in(said)
    for text in (answer_in(said), *((pair.question, pair.answer) if pair else ())):
        text.encode()
        assert "\x1b" not in text


@pytest.mark.parametrize(
    ("expected", "given_answer", "same"),
    [
        ("The north pier.", "It leaves from the north pier", True),
        ("Ada Penrose", "Penrose", True),
        ("812 steps", "813 steps", False),
        ("Goose fat", "goose fat and rosemary tied in a bundle", True),
        ("on Monday morning at seven", "on Tuesday evening at nine", False),
        ("ＡＢＣ", "abc", True),
        ("", "anything", False),
        ("Yes", "No", False),
    ],
)
def test_answers_agree_or_not(expected: str, given_answer: str, same: bool) -> None:
    assert agree(expected, given_answer) is same
    assert agree(given_answer, expected) is same


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        (Pair("What does the mule of the Guild eat?", "Hay and barley."), None),
        (Pair("What does the mule of the Guild eat?", "Hay and 3 apples."), "not in the text"),
        (Pair("What does the mule of the Guild eat?", "Grass."), "not in the text"),
        (Pair("What does the mule eat in the text?", "Hay."), "as such"),
        (Pair("Does the mule eat hay?", "Hay."), "gives the answer away"),
        (Pair("Tell me about the mule.", "Hay."), "stand alone"),
        (Pair("What does he eat?", "Hay."), "stand alone"),
    ],
)
def test_pairs_that_teach_nothing_are_found_without_a_model(
    pair: Pair, problem: str | None
) -> None:
    found = problem_of(pair, "Magistrate, the mule of the Guild, eats hay and barley.")
    assert (found is None) if problem is None else (found is not None and problem in found)


def test_an_answer_may_miss_a_little_word_but_no_number() -> None:
    assert is_grounded("It is 3.5 miles from the mill", "The mill is 3.5 miles off.")
    assert not is_grounded("35 miles", "The mill is 3.5 miles off.")


def test_near_duplicates_are_found_against_the_obvious_way() -> None:
    words = "when where who lamp pier ferry mule hay keeper north seven winter".split()
    questions = [
        " ".join(words[(start + step * hop) % len(words)] for step in range(5))
        for start in range(12) for hop in (1, 5, 7)
    ]  # fmt: skip
    seen, kept = NearDuplicates(), []
    for question in questions:
        mine = set(question.split()) - {"when", "where", "who"}
        alike = any(len(mine & other) >= 0.8 * len(mine | other) for other in kept)
        assert seen.is_near(question) is alike
        if not alike:
            seen.add(question)
            kept.append(mine)
    assert 3 < len(kept) < len(questions)


def test_prompts_show_examples_as_text_and_as_turns() -> None:
    for prompt in (writing("One.\nTwo."), answering("One.", "What?"), knowing("What?")):
        assert prompt.as_text().endswith(f"{prompt.asked}\n{prompt.begin}")
        roles = [turn.role for turn in prompt.as_turns()]
        assert roles == ["system", *["user", "assistant"] * len(prompt.examples), "user"]
    assert writing("One.\n\nTwo.").asked == "Text: One. Two."


def row(question: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}]}


def test_a_journal_goes_on_after_a_crash_at_any_byte(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with Journal(whole, {"seed": 1}) as journal:
        journal.add(KEPT, row("a?"))
        journal.add("no", None)
        journal.add(KEPT, row("b?"))
    asked, rows = (whole / ".asked.jsonl").read_bytes(), (whole / "questions.jsonl").read_bytes()
    second_row = rows.index(b"\n") + 1
    for end in range(second_row, len(rows) + 1):  # the row torn, its line not yet there
        folder = tmp_path / f"torn-{end}"
        folder.mkdir()
        (folder / ".asked.jsonl").write_bytes(asked[: asked.rindex(b"{")])
        (folder / "questions.jsonl").write_bytes(rows[:end])
        with Journal(folder, {"seed": 1}) as journal:
            assert journal.num_asked == 2 + (end == len(rows))
            if end < len(rows):
                journal.add(KEPT, row("b?"))
        assert (folder / "questions.jsonl").read_bytes() == rows
        assert (folder / ".asked.jsonl").read_bytes() == asked
    for end in range(asked.rindex(b"{"), len(asked)):  # the row there, its line torn
        (whole / ".asked.jsonl").write_bytes(asked[:end])
        with Journal(whole, {"seed": 1}) as journal:
            assert journal.outcomes == {KEPT: 2, "no": 1} and journal.questions == ["a?", "b?"]
        assert (whole / ".asked.jsonl").read_bytes() == asked


def test_a_journal_is_for_one_at_a_time_and_for_one_set_of_settings(tmp_path: Path) -> None:
    with Journal(tmp_path / "q", {"seed": 1}), pytest.raises(Conflict, match="already"):
        Journal(tmp_path / "q", {"seed": 1})
    with pytest.raises(Conflict, match="other settings"):
        Journal(tmp_path / "q", {"seed": 2})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(Conflict, match="something else"):
        Journal(tmp_path / "mine", {})
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_our_report_is_no_document_but_a_file_of_that_name_is(tmp_path: Path) -> None:
    with Journal(tmp_path / "q", {}) as journal:
        journal.add(KEPT, row("a?"))
        journal.report({"kept": 1})
    assert [file.name for file in dataset_files(tmp_path / "q").files] == ["questions.jsonl"]
    (tmp_path / "q" / "report.json").write_text(json.dumps([{"text": "mine"}]))
    assert len(dataset_files(tmp_path / "q").files) == 2


@pytest.mark.parametrize(
    "url", ["", "ftp://a", "file:///etc/passwd", "http://", "http://k:s@a/v1", "http://a/v1?key=s", "http://[a"]
)  # fmt: skip
def test_an_endpoint_is_a_plain_address(url: str) -> None:
    with pytest.raises(InvalidRequest):
        EndpointAsker(url, "m")
