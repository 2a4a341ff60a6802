"""A model's tokenizer as the metadata of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forgellm.catalog.gguf_export_tokenizer import TokenizerFacts, tokenizer_metadata
from forgellm.data.tokenizer import TURN_ENDS, Tokenizer

_MESSAGE_END = "<|eom_id|>"


def carried_tokenizer(model: Path, tokenizer: Tokenizer, num_rows: int) -> dict[str, Any]:
    """The tokenizer as GGUF metadata; `num_rows` is the embedding's. Raises UnsupportedModel."""
    text = (model / "tokenizer.json").read_text("utf-8")
    ids = {token: tokenizer.token_id(token) for token in tokenizer.special_tokens}
    ends = {token: ids[token] for token in TURN_ENDS if ids.get(token) in tokenizer.stop_ids}
    message_end = ends.pop(_MESSAGE_END, None)
    eos = ids.get(tokenizer.eos_token or "")
    facts = TokenizerFacts(
        control_tokens=tokenizer.special_tokens,
        bos=tokenizer.bos_id
        if tokenizer.bos_id is not None
        else ids.get(tokenizer.bos_token or ""),
        eos=tokenizer.document_end_id if eos is None else eos,
        eot=next(iter(ends.values()), None),
        eom=message_end,
        unknown=ids.get(_named(model, "unk_token")),
        padding=ids.get(_named(model, "pad_token")),
        add_bos=tokenizer.bos_id is not None,
        chat_template=tokenizer.chat_template,
    )
    return tokenizer_metadata(text, facts, num_rows)


def _named(model: Path, key: str) -> str:
    file = model / "tokenizer_config.json"
    value = json.loads(file.read_text("utf-8")).get(key) if file.is_file() else None
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""
