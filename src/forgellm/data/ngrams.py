"""Words of a text, and hashes of the n-grams that they make.

Words are compared after NFKC, casefolding and dropping punctuation. In writing without spaces
(Chinese, Japanese, Thai) each character counts as a word.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_PIECE_CHARACTERS = 1_000_000
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word is multiplied away
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_SPACE = re.compile(r"\s")

Hashes = NDArray[np.uint64]


def words_of(text: str) -> list[str]:
    """The words that are compared."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def word_hashes(words: list[str]) -> Hashes:
    """The same on every machine."""
    return np.fromiter(map(_hash, words), np.uint64, len(words))


def word_hash_pieces(text: str, max_n: int) -> Iterator[Hashes]:
    """The hashes of a text's words in pieces, so that no list of them all is made.

    Each piece begins with the last `max_n` - 1 words of the one before: no n-gram is missed.
    """
    before = np.empty(0, np.uint64)
    for piece in _pieces(text):
        words = np.concatenate([before, word_hashes(words_of(piece))])
        before = words[len(words) - min(len(words), max_n - 1) :]
        yield words


def ngrams(words: Hashes, wanted: Iterable[int]) -> Iterator[tuple[int, Hashes]]:
    """(n, a hash for each n-gram of `words`), for every wanted n of which there is one.

    The hash of n words is that of its first n - 1, times a number, plus the last word's.
    """
    grams = words
    for n in range(1, min(len(words), max(wanted, default=0)) + 1):
        if n > 1:
            grams = grams[:-1] * _BASE + words[n - 1 :]
        if n in set(wanted):
            yield n, grams


@lru_cache(maxsize=200_000)
def _hash(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _pieces(text: str) -> Iterator[str]:
    """`text` cut at spaces, where it has any."""
    start = 0
    while start < len(text):
        space = _SPACE.search(text, start + _PIECE_CHARACTERS)
        near = space and space.start() < start + 2 * _PIECE_CHARACTERS
        end = space.start() if space and near else start + 2 * _PIECE_CHARACTERS
        yield text[start:end]
        start = end
