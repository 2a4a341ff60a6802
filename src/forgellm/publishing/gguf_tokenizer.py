"""A model's tokenizer as the metadata of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forgellm.catalog.gguf_export_tokenizer import TokenizerFacts, tokenizer_metadata
from forgellm.data.chat.turn_ends import stop_ids, turn_end_ids
from forgellm.data.tokenizer import Tokenizer


def carried_tokenizer(model: Path, tokenizer: Tokenizer, num_rows: int) -> dict[str, Any]:
    """The tokenizer as GGUF metadata; `num_rows` is the embedding's. Raises UnsupportedModel."""
    text = (model / "tokenizer.json").read_text("utf-8")
    ids = {token: tokenizer.token_id(token) for token in tokenizer.special_tokens}
    named = ids.get(tokenizer.eos_token or "")
    eos = tokenizer.document_end_id if named is None else named
    eot, eom = _turn_ends(tokenizer, eos)
    facts = TokenizerFacts(
        control_tokens=tokenizer.special_tokens,
        bos=tokenizer.bos_id
        if tokenizer.bos_id is not None
        else ids.get(tokenizer.bos_token or ""),
        eos=eos,
        eot=eot,
        eom=eom,
        unknown=ids.get(_named(model, "unk_token")),
        padding=ids.get(_named(model, "pad_token")),
        add_bos=tokenizer.bos_id is not None,
        chat_template=tokenizer.chat_template,
    )
    return tokenizer_metadata(text, facts, num_rows)


def _turn_ends(tokenizer: Tokenizer, eos: int) -> tuple[int | None, int | None]:
    """What else ends an answer: a GGUF file has two more keys for it. llama.cpp knows the usual ends
    of a document by their names."""
    found = list(turn_end_ids(tokenizer).values())
    found += sorted(stop_ids(tokenizer) - {*found, eos, tokenizer.document_end_id})
    eot = found[0] if found else None
    return eot, next((index for index in found[1:] if index != eos), None)


def _named(model: Path, key: str) -> str:
    file = model / "tokenizer_config.json"
    value = json.loads(file.read_text("utf-8")).get(key) if file.is_file() else None
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""
