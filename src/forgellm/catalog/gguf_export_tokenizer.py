"""From a `tokenizer.json` to GGUF metadata: the inverse of `gguf_tokenizer.build_tokenizer`.

Which of the known ways of cutting text a tokenizer has is found by what it does, since the same
pattern can be written in many ways.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from forgellm.catalog.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPLITS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    splitter,
)
from forgellm.errors import UnsupportedModel

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# Each known way of cutting text cuts this one differently.
_TELLING_TEXT = (
    "Don't I'LL we've CamelCase snake_case  a1b22c333d4444 1234567 12:30, 3.14 €20 ½x² Ⅳ\n\n\n"
    "\t if (x>=10) {\n    y += 1;\n}\r\n 'quoted'... (well)/or\n/path/to //\n  end   \n <<$+=~|^ "
    "漢字かな한글 éß ЖЩ мир \u00a0nbsp\u3000wide 🎉👩‍👩‍👧 trailing  "
)


@dataclass(frozen=True)
class TokenizerFacts:
    """What a model's tokenizer is besides its `tokenizer.json`; ids are None where there is none.

    Attributes:
        control_tokens: strings of the tokens that text never spells.
        eot: ends a turn of a conversation; eom: ends a message that calls a tool.
        add_bos: whether BOS is put in front of a text.
    """

    control_tokens: frozenset[str]
    bos: int | None
    eos: int | None
    eot: int | None
    eom: int | None
    unknown: int | None
    padding: int | None
    add_bos: bool
    chat_template: str | None


def tokenizer_metadata(text: str, facts: TokenizerFacts, num_rows: int) -> dict[str, Any]:
    """Keys with their values. `text` is that of `tokenizer.json`, `num_rows` the embedding's.

    Raises UnsupportedModel.
    """
    tokenizer = Tokenizer.from_str(text)
    spec = json.loads(text)
    if spec["model"].get("type", "BPE") != "BPE" or "merges" not in spec["model"]:
        raise _unsupported("it is no BPE tokenizer")
    tokens = _tokens(tokenizer, num_rows)
    is_sentencepiece = bool(spec["model"].get("byte_fallback"))
    unknown = spec["model"].get("unk_token") if is_sentencepiece else None
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    kinds = [
        _kind(token, added, facts.control_tokens, unknown, is_sentencepiece) for token in tokens
    ]
    found: dict[str, Any] = {
        "model": "llama" if is_sentencepiece else "gpt2",
        "tokens": [f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)],
        "token_type": kinds,
        "bos_token_id": facts.bos,
        "eos_token_id": facts.eos,
        "eot_token_id": facts.eot,
        "eom_token_id": facts.eom,
        "unknown_token_id": facts.unknown,
        "padding_token_id": facts.padding,
        "add_bos_token": facts.add_bos,
        "add_eos_token": False,
    }
    merges = [_pair(merge) for merge in spec["model"]["merges"]]
    if is_sentencepiece:
        found["pre"] = "default"
        found["scores"] = _scores(found["tokens"], merges)
        found["add_space_prefix"] = tokenizer.encode("a", add_special_tokens=False).tokens[0] != "a"
    else:
        found["pre"] = _pre_tokenizer_name(tokenizer)
        found["merges"] = [" ".join(merge) for merge in merges]
    metadata = {f"tokenizer.ggml.{key}": value for key, value in found.items() if value is not None}
    if facts.chat_template:
        metadata["tokenizer.chat_template"] = facts.chat_template
    return metadata


def _tokens(tokenizer: Tokenizer, num_rows: int) -> list[str | None]:
    """By id; None for rows of the embedding that no token has."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if max(vocabulary.values()) >= num_rows:
        raise _unsupported("it has more tokens than the model's embedding has rows")
    tokens: list[str | None] = [None] * num_rows
    for token, index in vocabulary.items():
        tokens[index] = token
    return tokens


def _kind(
    token: str | None,
    added: set[str],
    control_tokens: frozenset[str],
    unknown: str | None,
    has_bytes: bool,
) -> int:
    if token is None:
        return UNUSED
    if token == unknown:
        return UNKNOWN
    if token in control_tokens:
        return CONTROL
    if has_bytes and _BYTE_TOKEN.fullmatch(token):
        return BYTE
    return USER_DEFINED if token in added else NORMAL


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _scores(tokens: Iterable[str], merges: list[tuple[str, str]]) -> list[float]:
    """llama.cpp joins the pair whose joined piece scores best, so that earlier merges score better."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    if tokenizer.pre_tokenizer is None:
        raise _unsupported("it does not cut text before merging")
    text = _TELLING_TEXT
    if tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str(text) != text:
        raise _unsupported("it changes text before cutting it")
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    for name, splits in SPLITS.items():
        if splitter(splits).pre_tokenize_str(text) == pieces:
            return name
    raise _unsupported(f"it cuts text in none of the known ways ({', '.join(SPLITS)})")


def _unsupported(reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"The model's tokenizer cannot be written as GGUF: {reason}")
