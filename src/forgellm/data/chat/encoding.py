"""What a row becomes in a store: tokens, and which of them are learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from forgellm.data.chat.rows import Conversation, RowRefused, conversation_of
from forgellm.data.chat.template import ChatTemplate
from forgellm.data.chat.tokens import LossOn, Tokens, chat_tokens
from forgellm.data.token_store import HASH_BYTES
from forgellm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class ChatFormat:
    """What decides the tokens of a row.

    Attributes:
        template: source of the chat template.
        max_tokens: longer conversations lose their last turns, longer pairs their first.
        columns: which column holds messages, user, assistant, system, or prompt, chosen, rejected;
            None finds out.
        in_pairs: whether a row is a pair of a chosen and a rejected answer.
    """

    template: str
    loss_on: LossOn
    max_tokens: int
    columns: Mapping[str, str] | None = None
    in_pairs: bool = False


class Entry(NamedTuple):
    """A row as it is stored.

    Attributes:
        key: rows with the same key stay on one side of the split.
        rejected_at: of a pair, where the tokens of the rejected conversation begin.
    """

    tokens: Tokens
    key: bytes
    text_bytes: int
    is_cut: bool
    rejected_at: int | None = None


class EncodedRow(NamedTuple):
    """An entry as it is written. `hash` is that of its key."""

    ids: bytes
    trained: bytes
    hash: bytes
    text_bytes: int
    is_cut: bool
    rejected_at: int | None


class RowEncoder(Protocol):
    def encode(self, row: Any) -> Entry:
        """Raises RowRefused."""


def encode_row(encoder: RowEncoder, row: Any) -> EncodedRow | str:
    """The row as it is written, or why it is left out."""
    try:
        entry = encoder.encode(row)
    except RowRefused as error:
        return str(error)
    return EncodedRow(
        np.array(entry.tokens.ids, dtype="<u4").tobytes(),
        bytes(entry.tokens.trained),
        hashlib.blake2b(entry.key, digest_size=HASH_BYTES).digest(),
        entry.text_bytes,
        entry.is_cut,
        entry.rejected_at,
    )


class ConversationEncoder:
    """Rows that hold one conversation. Raises TemplateRefused if the template is broken."""

    def __init__(self, tokenizer: Tokenizer, form: ChatFormat) -> None:
        self._tokenizer, self._form = tokenizer, form
        self._template = ChatTemplate(tokenizer, form.template)

    def encode(self, row: Any) -> Entry:
        """Raises RowRefused."""
        conversation = conversation_of(row, self._form.columns)
        found = self._tokens(conversation)
        is_cut = len(found.ids) > self._form.max_tokens
        if is_cut:
            found = self._cut(conversation)
        if not any(found.trained[1:]):
            raise RowRefused("nothing in it to learn")
        key = np.array(found.ids, dtype="<u4").tobytes()
        return Entry(found, key, text_bytes(conversation.turns), is_cut)

    def _cut(self, conversation: Conversation) -> Tokens:
        """As many of the first turns as fit, up to an answer."""
        turns = conversation.turns
        answers = [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]
        fitting: Tokens | None = None
        low, high = 0, len(answers) - 1  # one by one, a conversation of many turns would take hours
        while low < high:
            middle = (low + high) // 2
            part = Conversation(turns[: answers[middle] + 1], conversation.tools)
            found = self._tokens(part)
            if len(found.ids) <= self._form.max_tokens:
                fitting, low = found, middle + 1
            else:
                high = middle
        if fitting is None:
            raise RowRefused(f"its first answer ends beyond {self._form.max_tokens} tokens")
        return fitting

    def _tokens(self, conversation: Conversation) -> Tokens:
        return chat_tokens(conversation, self._tokenizer, self._template, self._form.loss_on)


def text_bytes(turns: list[dict[str, Any]]) -> int:
    return sum(len(str(turn.get("content") or "").encode()) for turn in turns)
