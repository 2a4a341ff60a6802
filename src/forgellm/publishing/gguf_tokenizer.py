"""A model's tokenizer in a GGUF file, and the proof that it is still the same one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forgellm.catalog.gguf_export_tokenizer import TokenizerFacts, tokenizer_metadata
from forgellm.data.chat.template import ChatTemplate, TemplateRefused
from forgellm.data.tokenizer import TURN_ENDS, Tokenizer
from forgellm.errors import ForgeError
from forgellm.publishing.comparison import general_texts

_MESSAGE_END = "<|eom_id|>"
_ODD_TEXT = "Don't I'LL we've 1234567 3.14 €20\n\n\n\t x>=10;\r\n 'q'... /a/b //c\n 漢字 мир é 🎉👩‍👩‍👧 end  "
_TURNS = [
    {"role": "user", "content": "How many boats came in 2024, and why?"},
    {"role": "assistant", "content": "Eleven.\n\n- The river froze.\n- It's a  short list."},
    {"role": "user", "content": _ODD_TEXT},
]


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


def require_same_tokens(model: Tokenizer, file: Tokenizer) -> None:
    """The same ids for plain text and for conversations, the same ends of a turn, the same template.

    Raises ForgeError, which says what differs.
    """
    if ends := sorted(model.stop_ids - file.stop_ids):
        raise _not_the_same(
            f"a token that ends an answer is lost ({_shown(model, ends)})", tokens=ends
        )
    if lost := sorted(model.special_tokens - file.special_tokens):
        raise _not_the_same(f"a control token has become text ({lost[0]})", tokens=lost)
    if model.chat_template != file.chat_template:
        raise _not_the_same("its chat template is another")
    if model.bos_id != file.bos_id:
        raise _not_the_same("it begins a text with another token")
    for text in [*general_texts(), _ODD_TEXT]:
        if model.encode(text) != file.encode(text):
            raise _not_the_same(f"it cuts a text otherwise ({text[:40]!r}...)")
    for text in _conversations(model):
        if model.encode_template(text) != file.encode_template(text):
            raise _not_the_same("it cuts a conversation otherwise", conversation=text[:400])


def _conversations(tokenizer: Tokenizer) -> list[str]:
    """Rendered by the model's own template, where it has one that takes these turns."""
    special = "".join(sorted(tokenizer.special_tokens))
    found = [f"{special} a{special}b"]
    if tokenizer.chat_template is None:
        return found
    try:
        template = ChatTemplate(tokenizer, tokenizer.chat_template)
        found += [template.render(_TURNS[:count], for_answer=True) for count in (1, 3)]
    except TemplateRefused:
        pass  # it is carried as it is
    return found


def _shown(tokenizer: Tokenizer, ids: list[int]) -> str:
    return ", ".join(tokenizer.decode([index], skip_special=False) for index in ids)


def _not_the_same(reason: str, **details: Any) -> ForgeError:
    return ForgeError(
        f"The tokenizer in the GGUF file is not the model's: {reason}. It was not exported.",
        suggestion="Use the model itself, or llama.cpp's convert_hf_to_gguf.py, and report this.",
        details=details,
    )
