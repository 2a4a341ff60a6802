"""Builds a `tokenizers.Tokenizer` from the vocabulary in a GGUF file.

Two kinds are known: `gpt2` (byte-level BPE; how text is split before merging follows from
`tokenizer.ggml.pre`) and `llama` (SentencePiece BPE: pieces with scores, bytes as a fallback).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from forgellm.catalog.gguf_file import damaged
from forgellm.errors import UnsupportedModel

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Ids that end an answer, besides EOS, and tokens that llama.cpp knows to do so.
TURN_END_KEYS = ("eot", "eom")
TURN_END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")
SPACE = "\u2581"  # SentencePiece's visible space
_UNUSED_ROW = re.compile(r"\[PAD\d+\]")

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_DIGIT_BY_DIGIT = [r"\p{N}", _GPT2]
_LLAMA3 = [rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"]
_QWEN2 = [rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"]
_TEKKEN = [
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
]
# Each pattern cuts what the one before it left whole, as in llama.cpp.
SPLITS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    "gpt-2": [_GPT2],
    "smollm": _DIGIT_BY_DIGIT,
    "starcoder": _DIGIT_BY_DIGIT,
    "refact": _DIGIT_BY_DIGIT,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
# Vocabularies made by other trainers hold pieces that merging alone would not reach.
_WHOLE_PIECES_FIRST = (_LLAMA3, _TEKKEN)


@dataclass(frozen=True)
class Vocabulary:
    """What the file says about its tokens. `bos` and `eos` are ids, or None."""

    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str] | None
    bos: int | None
    eos: int | None
    add_bos: bool
    add_eos: bool


def build_tokenizer(metadata: dict[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer and its `tokenizer_config.json`. Raises UnsupportedModel."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModel(
            f"GGUF tokenizer kind {str(kind)[:40]!r} cannot be imported",
            suggestion="Supported: gpt2 (byte-level BPE) and llama (SentencePiece BPE).",
        )
    vocabulary = _read_vocabulary(metadata, kind)
    try:
        if kind == "gpt2":
            tokenizer = _byte_level(vocabulary, metadata.get("tokenizer.ggml.pre", "default"))
        else:
            prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
            tokenizer = _sentencepiece(vocabulary, add_space_prefix=bool(prefix))
        _add_tokens(tokenizer, vocabulary)
        _add_ends(tokenizer, vocabulary)
    except UnsupportedModel:
        raise
    except Exception as error:  # the library reports a bad vocabulary as a bare Exception
        raise damaged("its vocabulary does not make a tokenizer") from error
    return tokenizer, _settings(metadata, vocabulary)


def _read_vocabulary(metadata: dict[str, Any], kind: str) -> Vocabulary:
    def read(key: str, item_type: type, default: Any = None) -> Any:
        values = metadata.get(f"tokenizer.ggml.{key}", default)
        if values is not None and not (
            isinstance(values, list) and all(type(value) is item_type for value in values)
        ):
            raise damaged(f"tokenizer.ggml.{key} is not a list of {item_type.__name__}")
        return values

    tokens = read("tokens", str)
    if not tokens:
        raise damaged("it holds no vocabulary")
    kinds = read("token_type", int, [NORMAL] * len(tokens))
    scores = read("scores", float, [0.0] * len(tokens))
    if not len(tokens) == len(kinds) == len(scores):
        raise damaged("its lists of tokens have different lengths")
    while _UNUSED_ROW.fullmatch(tokens[-1]) and kinds[-1] == UNUSED:
        # Rows that only round the embedding up to a size; the original tokenizer has none.
        tokens, kinds, scores = tokens[:-1], kinds[:-1], scores[:-1]
    bos, eos = (_token_id(metadata, name, len(tokens)) for name in ("bos", "eos"))
    pre = metadata.get("tokenizer.ggml.pre")
    bos_by_default = kind == "llama" or (isinstance(pre, str) and SPLITS.get(pre) is _LLAMA3)
    return Vocabulary(
        tokens, kinds, scores, read("merges", str), bos, eos,
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", bos_by_default)),
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
    )  # fmt: skip


def _token_id(metadata: dict[str, Any], name: str, num_tokens: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < num_tokens:
        raise damaged(f"tokenizer.ggml.{name}_token_id is outside the vocabulary")
    return value


def _byte_level(vocabulary: Vocabulary, pre: Any) -> Tokenizer:
    splits = SPLITS.get(pre) if isinstance(pre, str) else None
    if splits is None:
        raise UnsupportedModel(
            f"GGUF pre-tokenizer {str(pre)[:40]!r} cannot be imported",
            suggestion=f"Supported: {', '.join(SPLITS)}.",
        )
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(vocabulary.tokens)},
            merges=_read_merges(vocabulary),
            ignore_merges=any(splits is whole for whole in _WHOLE_PIECES_FIRST),
        )
    )
    if splits is _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitter(splits)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def splitter(splits: list[str]) -> pre_tokenizers.PreTokenizer:
    """Cuts text by one of `SPLITS`, and shows its bytes as letters."""
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(split), behavior="isolated") for split in splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _sentencepiece(vocabulary: Vocabulary, *, add_space_prefix: bool) -> Tokenizer:
    unknown = [
        t for t, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == UNKNOWN
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(vocabulary.tokens)},
            merges=_merges_from_scores(vocabulary),
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    show_spaces = normalizers.Replace(" ", SPACE)
    read_back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if add_space_prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), show_spaces])
        read_back.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = show_spaces
    tokenizer.decoder = decoders.Sequence(read_back)
    return tokenizer


def _read_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    return [(left, right) for left, right in (m.split(" ") for m in vocabulary.merges or [])]


def _merges_from_scores(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose joined piece scores best: that order, as merges."""
    if vocabulary.merges:
        return _read_merges(vocabulary)
    ids = {
        token: index
        for index, token in enumerate(vocabulary.tokens)
        if vocabulary.kinds[index] == NORMAL
    }
    ranked = sorted(ids, key=lambda token: (-vocabulary.scores[ids[token]], ids[token]))
    return [
        (left, right)
        for token in ranked
        for left, right in sorted(
            ((token[:cut], token[cut:]) for cut in range(1, len(token))),
            key=lambda pair: (ids.get(pair[0], 0), ids.get(pair[1], 0)),
        )
        if left in ids and right in ids
    ]


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Control tokens become special tokens; user-defined ones are found whole in plain text."""
    kinds = list(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    special = [token for token, kind in kinds if kind in (CONTROL, UNKNOWN)]
    plain = [token for token, kind in kinds if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    # Pieces that show their spaces can only be found once the text shows them too.
    tokenizer.add_tokens([AddedToken(t, normalized=SPACE in t) for t in plain])


def _add_ends(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Lets the tokenizer put BOS in front, and EOS behind, where the file asks for it."""
    ids = (
        vocabulary.bos if vocabulary.add_bos else None,
        vocabulary.eos if vocabulary.add_eos else None,
    )
    bos, eos = ([vocabulary.tokens[index]] if index is not None else [] for index in ids)
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*bos, "$A", *eos],
            special_tokens=[
                (vocabulary.tokens[index], index) for index in ids if index is not None
            ],
        )


def _settings(metadata: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    def token(name: str) -> str | None:
        index = _token_id(metadata, name, len(vocabulary.tokens))
        return None if index is None else vocabulary.tokens[index]

    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(
        length := metadata.get(f"{metadata.get('general.architecture')}.context_length"), int
    ):
        settings["model_max_length"] = length
    if isinstance(template := metadata.get("tokenizer.chat_template"), str) and template:
        settings["chat_template"] = template
    return settings
