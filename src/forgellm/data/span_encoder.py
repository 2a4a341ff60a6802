"""Ids of texts, and which of the tokens begin in given stretches of the text.

A text is encoded at once, as the model's own tokenizer does it: cut at the stretches' borders, its
ids would be others wherever tokens reach over a border, or a mark is put in front of each text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from forgellm.data.bulk_encoder import BulkEncoder

Span = tuple[int, int]
"""A stretch of a text: its first character's place, and that behind its last."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE_MARK = "\u2581"  # stands for a space in SentencePiece's tokens
_SAMPLES = ("a", "a b", " It's 12  (x).\n\n\tEnd", "\u00e9 \u65e5\u672c")


class Tokens(NamedTuple):
    """The tokens of a text.

    Attributes:
        ids: of T tokens, TOKEN_BYTES each.
        trained: T bytes, 1 for a token that begins in one of the stretches asked about, else 0.
    """

    ids: bytes
    trained: bytes


class SpanEncoder:
    """For several threads. To `plain` control tokens are text like any other, to `template` not."""

    def __init__(
        self,
        bulk: BulkEncoder,
        plain: tokenizers.Tokenizer,
        template: Callable[[], tokenizers.Tokenizer],
        fresh: Callable[[], tokenizers.Tokenizer],
    ) -> None:
        """`fresh` makes another `plain`, which this may change."""
        self._bulk, self._plain, self._template, self._fresh = bulk, plain, template, fresh

    def encode(
        self, texts: list[str], spans: Sequence[Sequence[Span]], *, with_controls: bool = True
    ) -> list[Tokens]:
        """Of each text, with the spans to look for in it."""
        if any(spans) and not self._adds_up:
            return self._by_offsets(texts, spans, with_controls)
        encoded = self._bulk.encode(texts, with_controls=with_controls)
        found = [
            self._by_lengths(text, ids, wanted)
            for text, ids, wanted in zip(texts, encoded, spans, strict=True)
        ]
        if odd := [n for n, tokens in enumerate(found) if tokens is None]:
            again = self._by_offsets(
                [texts[n] for n in odd], [spans[n] for n in odd], with_controls
            )
            found = [tokens or again[odd.index(n)] for n, tokens in enumerate(found)]
        return [tokens for tokens in found if tokens is not None]

    def encode_escaped(self, parts: Sequence[tuple[str, bool]], spans: Sequence[int]) -> Tokens:
        """The text that the parts make together, of which only those marked true may have control
        tokens. `spans` are the numbers of the parts that are looked for.

        Where the text spells a control token without being one, this gives the ids that it would
        have if the tokenizer did not know that token. A tokenizer that changes text before it looks
        for control tokens leaves no such way; then each part is encoded by itself.
        """
        if self._is_control_normalized:
            return self._one_by_one(parts, spans)
        text, wanted = "", []
        for number, (part, with_controls) in enumerate(parts):
            start = len(text)
            text += self._escape(part) if with_controls else part
            if number in spans:
                wanted.append((start, len(text)))
        encoding = self._escaped.encode(text, add_special_tokens=False)
        ids = [self._ids_of_keys.get(index, index) for index in encoding.ids]
        return _tokens(np.array(ids, dtype="<u4"), _starts(encoding), wanted)

    def _one_by_one(self, parts: Sequence[tuple[str, bool]], spans: Sequence[int]) -> Tokens:
        ids: list[int] = []
        trained = bytearray()
        for number, (part, with_controls) in enumerate(parts):
            tokenizer = self._template() if with_controls else self._plain
            found = tokenizer.encode(part, add_special_tokens=False).ids
            ids += found
            trained += bytes([number in spans]) * len(found)
        return Tokens(np.array(ids, dtype="<u4").tobytes(), bytes(trained))

    def _by_offsets(
        self, texts: list[str], spans: Sequence[Sequence[Span]], with_controls: bool
    ) -> list[Tokens]:
        tokenizer = self._template() if with_controls else self._plain
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            _tokens(np.array(encoding.ids, dtype="<u4"), _starts(encoding), wanted)
            for encoding, wanted in zip(encodings, spans, strict=True)
        ]

    def _by_lengths(self, text: str, ids: bytes, spans: Sequence[Span]) -> Tokens | None:
        """None where the tokens' lengths do not add up to the text's. None of them is longer than
        its stretch of the text, so that they are right where they do."""
        numbers = np.frombuffer(ids, dtype="<u4")
        if not spans:
            return Tokens(ids, bytes(len(numbers)))
        lengths = self._lengths[numbers]
        ends = lengths.cumsum()
        num_bytes = len(text) if text.isascii() else len(text.encode())
        if not len(ends) or ends[-1] != num_bytes or not self._is_kept(text):
            return None
        if num_bytes > len(text):
            spans = [(len(text[:a].encode()), len(text[:b].encode())) for a, b in spans]
        borders = np.searchsorted(ends - lengths, spans)
        trained = np.zeros(len(numbers), dtype=np.uint8)
        for first, last in borders.tolist():
            trained[first:last] = 1
        return Tokens(ids, trained.tobytes())

    def _is_kept(self, text: str) -> bool:
        """Whether the tokenizer takes the text as it is."""
        if self._plain.normalizer is None:
            return True
        changed: str = self._plain.normalizer.normalize_str(text)
        return changed == text or changed.replace(_SPACE_MARK, " ") == text

    @cached_property
    def _adds_up(self) -> bool:
        """Whether tokens stand for the text and nothing else: a tokenizer that puts a space or a
        mark in front of texts has tokens that are longer."""
        return all(
            int(self._lengths[self._plain.encode(text, add_special_tokens=False).ids].sum())
            == len(text.encode())
            and self._is_kept(text)
            for text in _SAMPLES
        )

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        """By id, how many bytes of text the token stands for; 0 where that is not known."""
        vocabulary = self._plain.get_vocab(with_added_tokens=True)
        added = {token.content for token in self._plain.get_added_tokens_decoder().values()}
        sample = self._plain.encode("\u00e9", add_special_tokens=False).tokens
        is_byte_level = "".join(sample).endswith("\u00c3\u00a9")
        lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
        for token, index in vocabulary.items():
            if token in added:
                lengths[index] = len(token.encode())
            elif is_byte_level:
                lengths[index] = len(token)
            elif _BYTE_TOKEN.fullmatch(token):
                lengths[index] = 1
            else:
                lengths[index] = len(token.replace(_SPACE_MARK, " ").encode())
        return lengths

    # Control tokens under names that nobody can guess, to a tokenizer that knows no others.

    def _escape(self, text: str) -> str:
        return self._control.sub(lambda found: self._keys[found[0]], text)

    @cached_property
    def _keys(self) -> dict[str, str]:
        secret = secrets.token_hex(16)
        added = self._plain.get_added_tokens_decoder().items()
        return {token.content: f"{secret}x{index:08d}x" for index, token in added if token.special}

    @cached_property
    def _is_control_normalized(self) -> bool:
        added = self._plain.get_added_tokens_decoder().values()
        return any(token.special and token.normalized for token in added)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        tokens = sorted(self._keys, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    @cached_property
    def _escaped(self) -> tokenizers.Tokenizer:
        tokenizer = self._fresh()
        special = [t for t in tokenizer.get_added_tokens_decoder().values() if t.special]
        tokenizer.add_tokens(
            [
                tokenizers.AddedToken(
                    self._keys[token.content],
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                    special=False,
                )
                for token in special
            ]
        )
        return tokenizer

    @cached_property
    def _ids_of_keys(self) -> dict[int, int]:
        """From the ids that the keys have to those of their tokens."""
        pairs = self._keys.items()
        ids = ((self._escaped.token_to_id(key), self._plain.token_to_id(t)) for t, key in pairs)
        return {key: index for key, index in ids if key is not None and index is not None}


def _starts(encoding: tokenizers.Encoding) -> NDArray[np.int64]:
    return np.array([start for start, _ in encoding.offsets], dtype=np.int64)


def _tokens(ids: NDArray[np.uint32], starts: NDArray[np.int64], spans: Sequence[Span]) -> Tokens:
    trained = np.zeros(len(ids), dtype=np.uint8)
    for first, last in spans:
        trained |= (first <= starts) & (starts < last)
    return Tokens(ids.tobytes(), trained.tobytes())
