"""Tokenizers from GGUF vocabularies: byte-level kinds and SentencePiece."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from forgellm.catalog.gguf_tokenizer import build_tokenizer
from forgellm.errors import UnsupportedModel
from tiny_tokenizer import TRAINING_TEXT, build_tiny_tokenizer

SPACE = "\u2581"
TEXTS = [
    "the miller counts  2000 sacks", "don't I'LL we've", "a\n\n\n  b\t c", " leading", "x  ",
    "café naïve 漢字 🎉", "1234567", "a 12 345", "if x>=10:\n    y += 1\n", "½ x² Ⅳ", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def pieces(metadata: dict[str, Any], pre: str, text: str) -> list[str]:
    tokenizer, _ = build_tokenizer({**metadata, "tokenizer.ggml.pre": pre})
    alphabet = {token: byte for byte, token in _byte_letters().items()}
    found = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [bytes(alphabet[letter] for letter in piece).decode() for piece, _ in found]


def _byte_letters() -> dict[int, str]:
    letters = {b: chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    others = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + index) for index, byte in enumerate(others)}


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "a  123 it's", ["a", " ", " 123", " it", "'s"]),
        ("smollm", "a  123 it's", ["a", "  ", "1", "2", "3", " it", "'s"]),
        ("llama-bpe", "a 12345 IT'S\n\nx", ["a", " ", "123", "45", " IT", "'S", "\n\n", "x"]),
        ("qwen2", "a 123 IT'S (x)", ["a", " ", "1", "2", "3", " IT", "'S", " (", "x", ")"]),
        ("tekken", "camelCase 12", ["camel", "Case", " ", "1", "2"]),
        ("default", "a 12345, b", ["a", " ", "123", "45", ",", " b"]),
    ],
)
def test_text_is_split_as_the_vocabulary_was_trained(
    byte_level: dict[str, Any], pre: str, text: str, expected: list[str]
) -> None:
    assert pieces(byte_level, pre, text) == expected


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "default"])
def test_byte_level_text_comes_back_byte_for_byte(byte_level: dict[str, Any], pre: str) -> None:
    tokenizer, _ = build_tokenizer({**byte_level, "tokenizer.ggml.pre": pre})
    for text in [*TEXTS, TRAINING_TEXT]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_byte_level_ids_equal_those_of_the_tokenizer_it_came_from(
    byte_level: dict[str, Any], tmp_path: Path
) -> None:
    original = Tokenizer.from_file(str(build_tiny_tokenizer(tmp_path) / "tokenizer.json"))
    tokenizer, settings = build_tokenizer(byte_level)
    for text in [*TEXTS, TRAINING_TEXT, "<|im_start|>user\nhi<|im_end|>"]:
        assert tokenizer.encode(text).ids == original.encode(text).ids
    assert (settings["bos_token"], settings["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert settings["add_bos_token"] is False


def test_bos_is_added_where_the_kind_or_the_file_asks_for_it(byte_level: dict[str, Any]) -> None:
    for changes, expected in (
        ({"tokenizer.ggml.pre": "llama-bpe"}, True),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, False),
        ({"tokenizer.ggml.add_bos_token": True}, True),
    ):
        tokenizer, settings = build_tokenizer({**byte_level, **changes})
        assert (tokenizer.encode("a").ids[0] == 1) is expected
        assert settings["add_bos_token"] is expected


def test_user_defined_tokens_stay_whole_and_are_not_special(byte_level: dict[str, Any]) -> None:
    metadata = {
        **byte_level,
        "tokenizer.ggml.tokens": [*byte_level["tokenizer.ggml.tokens"], "<think>"],
        "tokenizer.ggml.token_type": [*byte_level["tokenizer.ggml.token_type"], 4],
    }
    tokenizer, _ = build_tokenizer(metadata)
    encoded = tokenizer.encode("a<think>b<|im_end|>")
    assert encoded.tokens == ["a", "<think>", "b", "<|im_end|>"]
    assert tokenizer.decode(encoded.ids) == "a<think>b"


@pytest.fixture(scope="module")
def sentencepiece() -> dict[str, Any]:
    """A vocabulary as SentencePiece's BPE trainer leaves it: scores fall in merge order."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never")
    trained.train_from_iterator(
        [TRAINING_TEXT], trainers.BpeTrainer(vocab_size=300, show_progress=False)
    )
    learned = [t for t, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    special = ["<unk>", "<s>", "</s>"]
    from_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*special, *from_bytes, *learned],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(learned))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(learned),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def by_scores(metadata: dict[str, Any], text: str) -> list[str]:
    """SentencePiece's own rule, spelled out: join the adjacent pair whose joint scores best."""
    scores = dict(
        zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True)
    )
    symbols = list(text.replace(" ", SPACE))
    while True:
        joints = [
            (scores[symbols[i] + symbols[i + 1]], -i)
            for i in range(len(symbols) - 1)
            if symbols[i] + symbols[i + 1] in scores
        ]
        if not joints:
            break
        at = -max(joints)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [
        piece
        for symbol in symbols
        for piece in ([symbol] if symbol in scores else [f"<0x{b:02X}>" for b in symbol.encode()])
    ]


def test_sentencepiece_joins_pieces_by_score(sentencepiece: dict[str, Any]) -> None:
    tokenizer, settings = build_tokenizer(sentencepiece)
    rng = random.Random(0)
    words = TRAINING_TEXT.split()
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(100)]
    for text in [*texts, "漢字 é\n x", "two  spaces"]:
        expected = by_scores(sentencepiece, " " + text)
        assert tokenizer.encode(text, add_special_tokens=False).tokens == expected
    assert tokenizer.encode("a").ids[0] == 1
    assert settings["unk_token"] == "<unk>"


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_text_comes_back(sentencepiece: dict[str, Any], prefix: bool) -> None:
    tokenizer, _ = build_tokenizer({**sentencepiece, "tokenizer.ggml.add_space_prefix": prefix})
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_runs_of_spaces_that_the_file_defines_are_one_token(sentencepiece: dict[str, Any]) -> None:
    """Gemma's files hold them as user-defined tokens, spelled with real spaces."""
    metadata = {
        **sentencepiece,
        "tokenizer.ggml.tokens": [*sentencepiece["tokenizer.ggml.tokens"], "   ", "  "],
        "tokenizer.ggml.scores": [*sentencepiece["tokenizer.ggml.scores"], -1000.0, -1000.0],
        "tokenizer.ggml.token_type": [*sentencepiece["tokenizer.ggml.token_type"], 4, 4],
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer, _ = build_tokenizer(metadata)
    encoded = tokenizer.encode("a   b", add_special_tokens=False)
    assert encoded.tokens == ["a", "   ", "b"]
    assert tokenizer.decode(encoded.ids) == "a   b"


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer.ggml.model": "bert"},
        {"tokenizer.ggml.model": None},
        {"tokenizer.ggml.pre": "no-such-kind"},
        {"tokenizer.ggml.tokens": []},
        {"tokenizer.ggml.tokens": [1, 2]},
        {"tokenizer.ggml.token_type": [1]},
        {"tokenizer.ggml.merges": ["one"]},
        {"tokenizer.ggml.merges": ["not there"]},
        {"tokenizer.ggml.eos_token_id": 10**9},
        {"tokenizer.ggml.bos_token_id": "x"},
    ],
)
def test_unusable_vocabularies_are_unsupported_models(
    byte_level: dict[str, Any], changes: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedModel):
        build_tokenizer({**byte_level, **changes})
