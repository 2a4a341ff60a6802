"""Many texts at once have the ids that each has alone, whichever library finds them."""

from __future__ import annotations

from functools import cache

import fastokens
import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

from forgellm.data import bulk_encoder
from forgellm.data.bulk_encoder import BulkEncoder
from tiny_tokenizer import TRAINING_TEXT

ByteLevel, Sequence, Split = pre_tokenizers.ByteLevel, pre_tokenizers.Sequence, pre_tokenizers.Split
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SLOW = r"(?:x+)+y|\p{L}+|\s+|[^\s\p{L}]+"  # takes ages for many x without a y
KINDS = {
    "gpt2": (None, ByteLevel(add_prefix_space=False)),
    "gpt2, space in front": (None, ByteLevel(add_prefix_space=True)),
    "smollm": (None, Sequence([pre_tokenizers.Digits(True), ByteLevel(add_prefix_space=False)])),
    "llama3": (
        None,
        Sequence([Split(Regex(LLAMA3), "isolated"), ByteLevel(False, use_regex=False)]),
    ),
    "qwen": (
        normalizers.NFC(),
        Sequence([Split(Regex(LLAMA3), "isolated"), ByteLevel(False, use_regex=False)]),
    ),
    "slow": (None, Sequence([Split(Regex(SLOW), "isolated"), ByteLevel(False, use_regex=False)])),
    "sentencepiece": (None, pre_tokenizers.Metaspace()),  # unknown to fastokens
}
ADDED = [
    "<|end|>",
    AddedToken("<mask>", special=True, lstrip=True, rstrip=True),
    AddedToken("<tool>", special=False, normalized=False),
]
TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            ["<|end|>", "<mask>", "<tool>", " ", "  ", "\n", "\t", "'s", "'LL", " the"]
        ),
        st.sampled_from(
            ["12", "3456", "e\u0301", "é", "語", "👩‍👩‍👧", "\xa0", "\r\n", ".", "sack", "_x"]
        ),
        st.text(st.characters(codec="utf-8"), max_size=4),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(autouse=True)
def from_the_first_character_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_encoder, "_WORTH_CHARACTERS", -1)


@cache
def trained(kind: str) -> str:
    normalizer, splitter = KINDS[kind]
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.train_from_iterator(
        [TRAINING_TEXT],
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<unk>"], initial_alphabet=ByteLevel.alphabet()
        ),
    )
    for token in ADDED:
        add = (
            tokenizer.add_special_tokens
            if getattr(token, "special", True)
            else tokenizer.add_tokens
        )
        add([token])
    return str(tokenizer.to_str())


def loaded(kind: str, *, plain: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(trained(kind))
    tokenizer.encode_special_tokens = plain
    return tokenizer


@cache
def encoder_of(kind: str) -> BulkEncoder:
    return BulkEncoder(loaded(kind, plain=True), lambda: loaded(kind, plain=False))


def check(encoder: BulkEncoder, kind: str, texts: list[str]) -> None:
    for with_controls in (False, True):
        slow = loaded(kind, plain=not with_controls)
        found = encoder.encode(texts, with_controls=with_controls)
        assert [np.frombuffer(ids, "<u4").tolist() for ids in found] == [
            slow.encode(text, add_special_tokens=False).ids for text in texts
        ]


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(texts=st.lists(TEXT, max_size=4))
def test_ids_are_those_of_tokenizers(kind: str, texts: list[str]) -> None:
    check(encoder_of(kind), kind, texts)


def test_the_fast_library_is_used_where_it_knows_the_tokenizer() -> None:
    known = {kind for kind in KINDS if encoder_of(kind)._fast is not None}
    assert known == set(KINDS) - {"sentencepiece"}


def test_a_text_beyond_the_limits_of_the_fast_library_is_encoded_all_the_same() -> None:
    text = "x" * 40
    encoder = encoder_of("slow")
    assert encoder._fast is not None
    with pytest.raises(ValueError, match="limit"):
        encoder._fast.encode_batch_flat([text])
    check(encoder, "slow", ["a", text])


def test_a_library_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were there an error in how it takes numbers apart, say."""
    other = fastokens.Tokenizer.from_json_str(trained("gpt2"))
    monkeypatch.setattr(
        fastokens, "Tokenizer", type("Wrong", (), {"from_json_str": staticmethod(lambda _: other)})
    )
    encoder = BulkEncoder(loaded("smollm", plain=True), lambda: loaded("smollm", plain=False))
    assert encoder._fast is None
    check(encoder, "smollm", ["In 1234 there were 56 sacks."])
