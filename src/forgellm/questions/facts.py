"""What in a sentence can be asked for: dates, numbers with units, names, rare words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from forgellm.questions.agreement import telling_words, words_of
from forgellm.questions.passages import Span

FactKind = Literal["date", "number", "name", "term"]
_KINDS: tuple[FactKind, ...] = ("date", "number", "name", "term")
_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = re.compile(rf"\b(?:\d{{1,2}} )?{_MONTH}(?: \d{{1,4}})?\b|\b(?:1\d{{3}}|20\d{{2}})\b")
_COUNT = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|"
    "seventeen|eighteen|nineteen|(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:-\\w+)?"
)
_NUMBER = re.compile(rf"(?<![\w.,])(\d[\d.,]*\d|\d|{_COUNT})(?:(\s?%)|\s([a-z]{{3,}}))?(?!\w)")
_NAME = re.compile(r"\b[^\W\d_a-z]\w*[a-z]\w*(?:(?: of| the)* [^\W\d_a-z]\w+)*")
_TERM = re.compile(r"\b[^\W\d_A-Z]{7,}\b")
_LEANING = frozenset(
    "it he she they this that these those his her their its we i you then there here but and so or"
    " such both neither nor also".split()
)
_LEAST_STEM_WORDS = 4
_SHORTEST, _LONGEST = 40, 300
_RARE = 3


class Fact(NamedTuple):
    """An answer within a sentence. `group` are the answers that could stand in its place: of its
    kind, and for a number with its unit."""

    sentence: Span
    kind: FactKind
    group: str
    start: int
    answer: str

    @property
    def stem(self) -> str:
        return self.sentence.text[: self.start].rstrip()


class Corpus:
    """The sentences of a dataset, by the words in them."""

    def __init__(self, sentences: list[Span]) -> None:
        self.sentences = sentences
        self.words = [frozenset(words_of(sentence.text)) for sentence in sentences]
        self._with_word: dict[str, list[int]] = {}
        for number, words in enumerate(self.words):
            for word in words:
                self._with_word.setdefault(word, []).append(number)
        self.lower_case = Counter(
            word for sentence in sentences for word in re.findall(r"\b[a-z]\w+", sentence.text)
        )

    def with_words(self, words: Iterable[str]) -> list[int]:
        """Numbers of the sentences that hold all the words."""
        found = sorted((self._with_word.get(word, []) for word in words), key=len)
        return sorted(set(found[0]).intersection(*found[1:])) if found else []

    def is_name(self, text: str) -> bool:
        """Whether its words are never written small."""
        return not any(self.lower_case[word.lower()] for word in text.split() if word[0].isupper())


def facts_of(corpus: Corpus) -> Iterator[Fact]:
    """The facts of every sentence that can stand alone, for each sentence the most telling first."""
    for sentence in corpus.sentences:
        text = sentence.text
        first = words_of(text[:20])[:1]
        is_prose = text[-1] in ".!?" and "\n" not in text and text[0] not in "#-*|>+0123456789"
        if is_prose and _SHORTEST <= len(text) <= _LONGEST and not _LEANING & set(first):
            found = [fact for fact in _found(sentence, corpus) if _can_be_asked(fact)]
            yield from sorted(found, key=lambda fact: (_KINDS.index(fact.kind), -fact.start))


def _found(sentence: Span, corpus: Corpus) -> Iterator[Fact]:
    text = sentence.text
    taken: list[tuple[int, int]] = []

    def free(match: re.Match[str]) -> bool:
        start, end = match.span()
        is_free = all(end <= before or start >= after for before, after in taken)
        if is_free:
            taken.append((start, end))
        return is_free

    for match in _DATE.finditer(text):
        if free(match):
            group = "year" if match[0].isdigit() else "day"
            yield Fact(sentence, "date", f"date {group}", match.start(), match[0])
    for match in _NUMBER.finditer(text):
        if free(match):
            unit = (match[2] or match[3] or "").strip()
            yield Fact(sentence, "number", f"number {unit}", match.start(), match[0])
    for match in _NAME.finditer(text):
        if match.start() > 0 and corpus.is_name(match[0]) and free(match):
            length = "one word" if " " not in match[0] else "words"
            yield Fact(sentence, "name", f"name {length}", match.start(), match[0])
    for match in _TERM.finditer(text):
        if len(corpus.with_words([match[0]])) <= _RARE and free(match):
            yield Fact(sentence, "term", "term", match.start(), match[0])


def _can_be_asked(fact: Fact) -> bool:
    before = words_of(fact.stem)
    return (
        len(before) >= _LEAST_STEM_WORDS
        and len(telling_words(fact.stem)) >= 2
        and not set(words_of(fact.answer)) & set(before)
    )
