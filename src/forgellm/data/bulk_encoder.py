"""Ids of many texts at once, by fastokens where it finds the same ones as tokenizers, only faster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from itertools import pairwise

import fastokens
import numpy as np
import tokenizers

TOKEN_BYTES = 4  # little-endian uint32

_WORTH_CHARACTERS = 200_000  # it takes half a second to load

# Where two tokenizers may differ: white space, contractions, numbers, scripts without spaces,
# composed and other odd characters.
_SAMPLES = (
    "The quick brown fox, isn't it? I'LL SAY so, it's 'quoted' and they've won.",
    " 1234567 12.50 3,000 v2.0.1 x86_64 0xFF 12th ½ Ⅷ ٣ ",
    "  two  three   \n\n\nnext\r\n\r\n\tdef f(a_b, *c):\n\t\treturn {'k': [a_b[0]]}  # why?!\n   ",
    "日本語のテキスト。中文字符，한국어 नमस्ते दुनिया مرحبا بالعالم Привет ไทย",
    "é e\u0301 Å ﬁ İ \u200b\ufeff\xa0\u2028\x00\x01 👩‍👩‍👧 🇫🇷 😀",
    "https://example.org/?q=a%20b&c=d#e <b>x</b> a@b.c ====== ------ ... $$\\frac{1}{2}$$",
)


class BulkEncoder:
    """Encodes as two instances of tokenizers do. For several threads.

    fastokens does not know every kind of tokenizer. Nor is it taken on trust: it must agree on texts
    of all sorts, with each control token among them, or tokenizers does the work.
    """

    def __init__(
        self, plain: tokenizers.Tokenizer, template: Callable[[], tokenizers.Tokenizer]
    ) -> None:
        """To `plain` control tokens are text like any other, to `template` they are not."""
        self._plain, self._template = plain, template
        self._num_characters = 0

    def encode(self, texts: list[str], *, with_controls: bool) -> list[bytes]:
        """For each text its ids, TOKEN_BYTES each. No control tokens are added."""
        self._num_characters += sum(map(len, texts))
        if self._num_characters > _WORTH_CHARACTERS and self._fast is not None:
            with suppress(Exception):  # its regular expressions have limits, for one
                return _encode_fast(self._fast, texts, with_controls)
        return _encode(self._template() if with_controls else self._plain, texts)

    @cached_property
    def _fast(self) -> fastokens.Tokenizer | None:
        try:
            fast = fastokens.Tokenizer.from_json_str(self._plain.to_str())
        except Exception:  # whatever it cannot do, tokenizers can
            return None
        added = [token.content for token in self._plain.get_added_tokens_decoder().values()]
        samples = [*_SAMPLES, *(f"a{token}b {token} \n{token}" for token in added)]
        agree = all(
            _encode_fast(fast, samples, with_controls) == _encode(slow, samples)
            for slow, with_controls in ((self._plain, False), (self._template(), True))
        )
        return fast if agree else None


def _encode_fast(fast: fastokens.Tokenizer, texts: list[str], with_controls: bool) -> list[bytes]:
    ids, offsets = fast.encode_batch_flat(texts, split_special_tokens=not with_controls)
    borders = TOKEN_BYTES * np.frombuffer(offsets, "<u8").astype(np.int64)
    return [ids[start:end] for start, end in pairwise(borders.tolist())]


def _encode(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[bytes]:
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, dtype="<u4").tobytes() for encoding in encodings]
