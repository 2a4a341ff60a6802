"""The conversations that ship with the demo: readable, true to its probes, and not the questions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from forgellm.data.chat.rows import Conversation, conversation_of
from forgellm.data.overlap import words_of
from forgellm.data.reading.json_rows import read_jsonl
from forgellm.demo.lessons import CONVERSATIONS
from forgellm.demo.measure import PROBES
from forgellm.evaluation.probe_files import Probe, read_probes


def refuse(reason: str, number: int) -> None:
    raise AssertionError(f"line {number}: {reason}")


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return [conversation_of(row) for _, row in read_jsonl(Path(CONVERSATIONS), refuse)]


@pytest.fixture(scope="module")
def probes() -> list[Probe]:
    return read_probes(PROBES)


def said(conversations: list[Conversation], *roles: str) -> list[str]:
    return [t["content"] for c in conversations for t in c.turns if t["role"] in roles]


def ngrams(texts: list[str], n: int) -> set[tuple[str, ...]]:
    split = [words_of(text) for text in texts]
    return {tuple(words[i : i + n]) for words in split for i in range(len(words) - n + 1)}


def test_questions_and_answers_take_turns(conversations: list[Conversation]) -> None:
    assert len(conversations) >= 300
    assert len({str(c.turns) for c in conversations}) == len(conversations)
    for conversation in conversations:
        roles = [turn["role"] for turn in conversation.turns]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns[0] == "user" and turns[-1] == "assistant"
        assert all(first != second for first, second in pairwise(turns)), roles
        assert all(turn["content"].strip() == turn["content"] for turn in conversation.turns)
    assert sum(len(c.turns) > 3 for c in conversations) >= 20


def test_each_fact_that_is_asked_for_is_taught_in_several_answers(
    conversations: list[Conversation], probes: list[Probe]
) -> None:
    answers = [f" {' '.join(words_of(text))} " for text in said(conversations, "assistant")]
    for probe in probes:
        wanted = f" {' '.join(words_of(probe.answer))}"
        assert sum(wanted in answer for answer in answers) >= 3, probe.answer


def test_what_is_asked_is_worded_otherwise_than_what_is_taught(
    conversations: list[Conversation], probes: list[Probe]
) -> None:
    taught = said(conversations, "user", "assistant")
    questions, stems = [p.question for p in probes], [f"{p.stem} {p.answer}" for p in probes]
    assert not ngrams(questions, 6) & ngrams(taught, 6)
    assert not ngrams(stems, 7) & ngrams(taught, 7)
    exact = {" ".join(words_of(text)) for text in taught}
    assert not exact & {" ".join(words_of(text)) for text in questions}
