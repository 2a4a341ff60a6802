"""Texts that are the same, or nearly so.

The same: equal but for case, white space and Unicode form. Nearly: sets of word 5-grams with a high
Jaccard similarity, estimated by MinHash with 128 permutations (Broder 1997) and found by banding.
"""

from __future__ import annotations

import hashlib
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from forgellm.data.ngrams import ngrams, word_hash_pieces

NGRAM = 5
MIN_NGRAMS = 16  # below it a single word decides too much
_PERMUTATIONS = 128
_SEED = 42
_BANDS = 32
_BUCKET_NEIGHBOURS = 8
_PAIRS_AT_ONCE = 100_000
_HASH_BYTES = 16

Signature = NDArray[np.uint32]


class Duplicate(NamedTuple):
    """Text `number` says what text `of`, which comes earlier and is kept, says.

    Attributes:
        similarity: 1 for the same text, else the estimated Jaccard similarity.
        is_exact: whether the texts are the same but for case, white space and Unicode form.
    """

    number: int
    of: int
    similarity: float
    is_exact: bool


class DuplicateFinder:
    """Takes texts one by one. Of each it keeps 16 bytes in memory and 512 on disk.

    Attributes:
        similarity: from which texts are nearly the same; 1 looks for the same alone.
    """

    def __init__(self, similarity: float) -> None:
        self.similarity = similarity
        self._hashes = bytearray()
        self._has_signature = bytearray()
        self._signatures = tempfile.TemporaryFile()

    def __enter__(self) -> DuplicateFinder:
        return self

    def __exit__(self, *_: object) -> None:
        self._signatures.close()

    def add(self, text: str) -> None:
        self._hashes += normalised_hash(text)
        if self.similarity == 1:
            return
        signature = minhash(text)
        self._has_signature.append(signature is not None)
        if signature is not None:
            self._signatures.write(signature.tobytes())

    def duplicates(self) -> list[Duplicate]:
        """By number. A text is compared with those that are kept alone, so that none is removed
        for its likeness to one that is gone itself."""
        rows = np.frombuffer(bytes(self._hashes), dtype=f"V{_HASH_BYTES}")
        _, first, which = np.unique(rows, return_index=True, return_inverse=True)
        similar = self._similar_pairs() if self.similarity < 1 else {}
        found: dict[int, Duplicate] = {}
        for number in range(len(rows)):
            same = int(first[which[number]])
            if same < number:
                # The first of equal texts may itself be near another: then that one stays.
                known = found.get(same)
                found[number] = (
                    known._replace(number=number) if known else Duplicate(number, same, 1.0, True)
                )
                continue
            kept = [
                (score, -other) for other, score in similar.get(number, []) if other not in found
            ]
            if kept:
                score, other = max(kept)
                found[number] = Duplicate(number, -other, score, False)
        return list(found.values())

    def _similar_pairs(self) -> dict[int, list[tuple[int, float]]]:
        """(earlier text, similarity) for each text that has such."""
        numbers = np.flatnonzero(np.frombuffer(bytes(self._has_signature), np.uint8))
        similar: dict[int, list[tuple[int, float]]] = defaultdict(list)
        if not len(numbers):
            return similar
        self._signatures.flush()
        signatures = np.memmap(
            self._signatures, np.uint32, mode="r", shape=(len(numbers), _PERMUTATIONS)
        )
        seen: set[tuple[int, int]] = set()
        for pairs in _candidates(signatures):
            for start in range(0, len(pairs), _PAIRS_AT_ONCE):
                later, earlier = pairs[start : start + _PAIRS_AT_ONCE].T
                scores = (signatures[later] == signatures[earlier]).mean(axis=1)
                for chosen in np.flatnonzero(scores >= self.similarity).tolist():
                    pair = int(numbers[later[chosen]]), int(numbers[earlier[chosen]])
                    if pair not in seen:
                        seen.add(pair)
                        similar[pair[0]].append((pair[1], float(scores[chosen])))
        return similar


def normalised_hash(text: str) -> bytes:
    """The same for texts that differ in case, white space or Unicode form alone."""
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return hashlib.blake2b(" ".join(words).encode(), digest_size=_HASH_BYTES).digest()


def minhash(text: str) -> Signature | None:
    """uint32 [128]; two agree in about as many places as their texts are similar.

    None for a text of fewer than MIN_NGRAMS different n-grams.
    """
    lowest = np.full(_PERMUTATIONS, np.iinfo(np.uint32).max, np.uint32)
    num_grams = 0
    for words in word_hash_pieces(text, NGRAM):
        for _, grams in ngrams(words, (NGRAM,)):
            distinct = np.unique(grams)
            num_grams += len(distinct)
            ends = np.array([0, len(distinct)], np.uint64)
            matrix = RMinHash.digest_matrix_from_flat_token_hashes(
                distinct, ends, _PERMUTATIONS, _SEED
            )
            lowest = np.minimum(lowest, np.array(matrix.to_rows()[0], np.uint32))
    return lowest if num_grams >= MIN_NGRAMS else None


def _candidates(signatures: NDArray[np.uint32]) -> Iterator[NDArray[np.int64]]:
    """int64 [pairs, 2] for each band: (later, earlier) signatures that are equal in it.

    In a large bucket each is compared with the first and with the few before it.
    """
    width = _PERMUTATIONS // _BANDS
    for band in range(_BANDS):
        columns = np.ascontiguousarray(signatures[:, band * width : (band + 1) * width])
        keys = columns.view(f"V{4 * width}").ravel()
        _, which = np.unique(keys, return_inverse=True)
        order = np.argsort(which, kind="stable")
        ordered = which[order]
        places = np.arange(len(order))
        starts = np.maximum.accumulate(
            np.where(np.concatenate([[True], ordered[1:] != ordered[:-1]]), places, 0)
        )
        far = places - starts > _BUCKET_NEIGHBOURS
        pairs = [np.stack([order[far], order[starts[far]]], axis=1)]
        for back in range(1, _BUCKET_NEIGHBOURS + 1):
            near = places - starts >= back
            pairs.append(np.stack([order[near], order[places[near] - back]], axis=1))
        yield np.concatenate(pairs)
