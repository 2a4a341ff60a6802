"""Which held-out texts are also in the training text: n-grams of words that both have.

What a word is, `ngrams` says. n is 13, as in the overlap study of GPT-3 (Brown et al. 2020,
https://arxiv.org/abs/2005.14165, appendix C). A held-out text of fewer words is looked for whole,
and one of fewer than five is not judged: so few words mean nothing.

The held-out side is indexed, the training side is streamed, so memory grows with the first alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forgellm.data.documents import Document
from forgellm.data.ngrams import Hashes, ngrams, word_hash_pieces, word_hashes, words_of

NGRAM = 13
MIN_WORDS = 5
MAX_INDEXED_WORDS = 20_000_000  # some 20 bytes each, beside the texts themselves

_EXAMPLE_WORDS = 40


@dataclass(frozen=True)
class HeldOut:
    """A text that is not to be trained on: a validation document, a probe, a benchmark's row."""

    name: str
    text: str


@dataclass(frozen=True)
class Overlap:
    """What of a held-out text is in the training text.

    Attributes:
        n: words in an n-gram; all of a short text's.
        share: of its n-grams that were found, above 0 and at most 1.
        example: the longest run of words found, or its beginning.
        source: the first document of the training text that has some of it.
    """

    name: str
    n: int
    share: float
    example: str
    source: str


@dataclass(frozen=True)
class OverlapReport:
    """Overlaps by falling share; of texts that are not listed nothing was found.

    Attributes:
        num_compared: held-out texts that were looked for.
        num_too_short: those of fewer than MIN_WORDS words.
        num_left_out: those beyond MAX_INDEXED_WORDS, which were not looked for.
    """

    overlaps: list[Overlap]
    num_compared: int
    num_too_short: int
    num_left_out: int


def find_overlaps(held_out: Iterable[HeldOut], training: Iterable[Document]) -> OverlapReport:
    """Look for every held-out text in the training text, which is gone through once."""
    index = OverlapIndex(held_out)
    for document in training:
        index.look_through(document)
    return index.report()


class OverlapIndex:
    """The n-grams of held-out texts, and which of them have been met."""

    def __init__(self, held_out: Iterable[HeldOut]) -> None:
        self._items: list[_Item] = []
        self._num_too_short = self._num_left_out = num_words = 0
        for item in held_out:
            words = words_of(item.text)
            if len(words) < MIN_WORDS:
                self._num_too_short += 1
            elif num_words >= MAX_INDEXED_WORDS:
                self._num_left_out += 1
            else:
                num_words += len(words)
                self._items.append(_Item(item, min(NGRAM, len(words)), word_hashes(words)))
        self._tables = {n: _Table(self._items, n) for n in {item.n for item in self._items}}
        self._sources: list[str] = []

    def look_through(self, document: Document) -> None:
        """Note which n-grams the training document has."""
        for words in word_hash_pieces(document.text, NGRAM):
            self._look_at(words, document.source)

    def report(self) -> OverlapReport:
        """What has been found so far."""
        found = [self._overlap(item) for item in self._items]
        overlaps = sorted(
            (item for item in found if item), key=lambda item: (-item.share, item.name)
        )
        return OverlapReport(overlaps, len(self._items), self._num_too_short, self._num_left_out)

    def _look_at(self, words: Hashes, source: str) -> None:
        number = len(self._sources)
        is_new = False
        for n, grams in ngrams(words, self._tables.keys()):
            is_new |= self._tables[n].mark(grams, number)
        if is_new:
            self._sources.append(source)

    def _overlap(self, item: _Item) -> Overlap | None:
        sources = self._tables[item.n].sources_of(item)
        found = sources >= 0
        if not found.any():
            return None
        words = words_of(item.held_out.text)
        start, length = _longest_run(found)
        example = words[start : start + min(length + item.n - 1, _EXAMPLE_WORDS)]
        return Overlap(
            name=item.held_out.name,
            n=item.n,
            share=float(found.mean()),
            example=" ".join(example),
            source=self._sources[int(sources[found].min())],
        )


@dataclass(frozen=True)
class _Item:
    held_out: HeldOut
    n: int
    words: Hashes

    def grams(self) -> Hashes:
        return next(grams for _, grams in ngrams(self.words, {self.n}))


@dataclass
class _Table:
    """The n-grams of one n: sorted and distinct, and the first source that has each, or -1."""

    items: list[_Item]
    n: int
    grams: Hashes = field(init=False)
    sources: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        mine = [item.grams() for item in self.items if item.n == self.n]
        self.grams = np.unique(np.concatenate(mine))
        self.sources = np.full(len(self.grams), -1, np.int64)

    def mark(self, grams: Hashes, source: int) -> bool:
        """Whether some were met for the first time."""
        places = np.searchsorted(self.grams, grams).clip(max=len(self.grams) - 1)
        met = places[self.grams[places] == grams]
        new = met[self.sources[met] < 0]
        self.sources[new] = source
        return len(new) > 0

    def sources_of(self, item: _Item) -> NDArray[np.int64]:
        """int64 [n-grams of the item]."""
        return self.sources[np.searchsorted(self.grams, item.grams())]


def _longest_run(found: NDArray[np.bool_]) -> tuple[int, int]:
    """(start, length) of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], found, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest] - starts[longest])
