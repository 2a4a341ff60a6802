"""The proof that what was made of a model reads text, and ends answers, as the model does."""

from __future__ import annotations

from typing import Any

from forgellm.data.chat.template import ChatTemplate, TemplateRefused
from forgellm.data.chat.turn_ends import stop_ids
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import ForgeError
from forgellm.publishing.comparison import general_texts

_ODD_TEXT = "Don't I'LL we've 1234567 3.14 €20\n\n\n\t x>=10;\r\n 'q'... /a/b //c\n 漢字 мир é 🎉👩‍👩‍👧 end  "
_TURNS = [
    {"role": "user", "content": "How many boats came in 2024, and why?"},
    {"role": "assistant", "content": "Eleven.\n\n- The river froze.\n- It's a  short list."},
    {"role": "user", "content": _ODD_TEXT},
]


def require_same_tokens(model: Tokenizer, made: Tokenizer, what: str) -> None:
    """The same ids for plain text and for conversations, the same ends of a turn, the same template.

    Raises ForgeError, which says what differs.
    """
    if ends := sorted(stop_ids(model) - made.eos_ids):
        raise _not_the_same(
            what, f"a token that ends an answer is lost ({_shown(model, ends)})", tokens=ends
        )
    if lost := sorted(model.special_tokens - made.special_tokens):
        raise _not_the_same(what, f"a control token has become text ({lost[0]})", tokens=lost)
    if model.chat_template != made.chat_template:
        raise _not_the_same(what, "its chat template is another")
    if model.bos_id != made.bos_id:
        raise _not_the_same(what, "it begins a text with another token")
    for text in [*general_texts(), _ODD_TEXT]:
        if model.encode(text) != made.encode(text):
            raise _not_the_same(what, f"it cuts a text otherwise ({text[:40]!r}...)")
    for text in _conversations(model):
        if model.encode_template(text) != made.encode_template(text):
            raise _not_the_same(what, "it cuts a conversation otherwise", conversation=text[:400])


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


def _not_the_same(what: str, reason: str, **details: Any) -> ForgeError:
    return ForgeError(
        f"The tokenizer of {what} is not the model's: {reason}. It was not kept.",
        suggestion="Use the model itself, and report this.",
        details=details,
    )
