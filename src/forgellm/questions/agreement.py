"""Whether two answers say the same, and whether an answer stands in a text.

Token F1 and its normalisation are those of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

MIN_F1 = 0.6
_MIN_GROUNDED = 0.8
_WORD = re.compile(r"\w+(?:[.,:]\d+)*")
_LITTLE_WORDS = frozenset(
    "a an the of to in on at by for from with and or as is are was were be been it its he she they"
    " his her their him them this that these those there who what when where why how which do does"
    " did has have had not no yes i you we my your our".split()
)


def words_of(text: str) -> list[str]:
    """Words in lower case, in one Unicode form; `3.5` is one word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def telling_words(text: str) -> list[str]:
    """The words that carry a meaning; all of them where none does."""
    words = words_of(text)
    return [word for word in words if word not in _LITTLE_WORDS] or words


def agree(expected: str, given: str) -> bool:
    """Whether one answer contains the other, or their telling words have an F1 of at least 0.6."""
    wanted, said = telling_words(expected), telling_words(given)
    if not wanted or not said:
        return False
    return _contains(said, wanted) or _contains(wanted, said) or token_f1(wanted, said) >= MIN_F1


def token_f1(wanted: list[str], said: list[str]) -> float:
    """Harmonic mean of precision and recall over words, repeated words counted."""
    shared = (Counter(wanted) & Counter(said)).total()
    return 2 * shared / (len(wanted) + len(said)) if wanted and said else 0.0


def is_grounded(answer: str, text: str) -> bool:
    """Whether every number and four fifths of the answer's telling words stand in the text."""
    wanted, there = telling_words(answer), set(words_of(text))
    if not wanted or any(word not in there for word in wanted if any(map(str.isdigit, word))):
        return False
    return sum(word in there for word in wanted) >= _MIN_GROUNDED * len(wanted)


class NearDuplicates:
    """Questions seen so far; a new one is a duplicate if it shares most of its telling words.

    Likeness is |A ∩ B| / |A ∪ B| of the sets of words (Jaccard), from 0 to 1.
    """

    def __init__(self, least_alike: float = 0.8) -> None:
        self._least_alike = least_alike
        self._sizes: list[int] = []
        self._with_word: dict[str, list[int]] = {}

    def is_near(self, question: str) -> bool:
        words = set(telling_words(question))
        shared: Counter[int] = Counter()
        for word in words:
            shared.update(self._with_word.get(word, ()))
        return any(
            count >= self._least_alike * (len(words) + self._sizes[number] - count)
            for number, count in shared.items()
        )

    def add(self, question: str) -> None:
        words = set(telling_words(question))
        for word in words:
            self._with_word.setdefault(word, []).append(len(self._sizes))
        self._sizes.append(len(words))


def _contains(longer: list[str], shorter: list[str]) -> bool:
    """Whether `shorter` stands in `longer` as a run of words."""
    width = len(shorter)
    return any(longer[i : i + width] == shorter for i in range(len(longer) - width + 1))
