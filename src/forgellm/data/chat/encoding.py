"""What a row becomes in a store: tokens, and which of them are learned."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from forgellm.data.chat.layout import LossOn
from forgellm.data.chat.rows import Conversation, conversation_of, unreadable
from forgellm.data.chat.tokens import ChatRuns, Run, chat_tokens
from forgellm.data.chat.turns import RowRefused
from forgellm.data.span_encoder import Tokens
from forgellm.data.token_store import HASH_BYTES
from forgellm.data.tokenizer import Tokenizer

T = TypeVar("T")
_PASSING = (MemoryError, OSError)  # faults of the machine, not of a row


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
        notes: what of the row is not used.
        rejected_at: of a pair, where the tokens of the rejected conversation begin.
    """

    tokens: Tokens
    key: bytes
    text_bytes: int
    is_cut: bool
    notes: tuple[str, ...]
    rejected_at: int | None = None


class EncodedRow(NamedTuple):
    """An entry as it is written. `hash` is that of its key."""

    ids: bytes
    trained: bytes
    hash: bytes
    text_bytes: int
    is_cut: bool
    notes: Sequence[str]
    rejected_at: int | None


Asking = Generator[list[Run], Tokens, T]
"""Hands out text, gets its tokens, and so on until it returns. Raises RowRefused."""


class RowEncoder(ABC):
    """Raises TemplateRefused if the template is broken."""

    def __init__(self, tokenizer: Tokenizer, form: ChatFormat) -> None:
        self._tokenizer, self._form = tokenizer, form
        self._chat = ChatRuns(tokenizer, form.template)

    def encode(self, rows: list[Any]) -> list[Entry | str]:
        """Each row's entry, or why it is left out. The text of all is encoded together.

        Whatever goes wrong with a row costs that row alone.
        """
        asking = [self._encode(row) for row in rows]
        found: dict[int, Entry | str] = {}
        answers: dict[int, Any] = dict.fromkeys(range(len(rows)))
        while answers:
            asked: dict[int, list[Run]] = {}
            for number, tokens in answers.items():
                try:
                    asked[number] = asking[number].send(tokens)
                except StopIteration as end:
                    found[number] = end.value
                except RowRefused as error:
                    found[number] = str(error)
                except _PASSING:
                    raise
                except Exception as error:
                    found[number] = unreadable(error)
            answers = dict(self._encoded(asked, found))
        return [found[number] for number in range(len(rows))]

    def _encoded(
        self, asked: dict[int, list[Run]], failed: dict[int, Entry | str]
    ) -> Iterator[tuple[int, Tokens]]:
        """The tokens of each row's text; one by one where the tokenizer fails on some of them."""
        try:
            found = chat_tokens(list(asked.values()), self._tokenizer)
        except _PASSING:
            raise
        except Exception as error:
            if len(asked) > 1:
                for number, runs in asked.items():
                    yield from self._encoded({number: runs}, failed)
            else:
                failed |= dict.fromkeys(asked, unreadable(error))
            return
        yield from zip(asked, found, strict=True)

    @abstractmethod
    def _encode(self, row: Any) -> Asking[Entry]: ...


def encode_rows(encoder: RowEncoder, rows: list[Any]) -> list[EncodedRow | str]:
    """The rows as they are written, or why they are left out."""
    return [found if isinstance(found, str) else _written(found) for found in encoder.encode(rows)]


def _written(entry: Entry) -> EncodedRow:
    return EncodedRow(
        *entry.tokens,
        hashlib.blake2b(entry.key, digest_size=HASH_BYTES).digest(),
        entry.text_bytes,
        entry.is_cut,
        entry.notes,
        entry.rejected_at,
    )


class ConversationEncoder(RowEncoder):
    """Rows that hold one conversation."""

    def _encode(self, row: Any) -> Asking[Entry]:
        conversation = self._chat.fitted(conversation_of(row, self._form.columns))
        found = yield self._runs(conversation)
        is_cut = len(found.trained) > self._form.max_tokens
        if is_cut:
            found = yield from self._cut(conversation)
        if not any(found.trained[1:]):
            raise nothing_to_learn(conversation)
        size = text_bytes(conversation.turns)
        return Entry(found, found.ids, size, is_cut, conversation.notes)

    def _cut(self, conversation: Conversation) -> Asking[Tokens]:
        """As many of the first turns as fit, up to an answer."""
        turns = conversation.turns
        answers = [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]
        fitting: Tokens | None = None
        low, high = 0, len(answers) - 1  # one by one, a conversation of many turns would take hours
        while low < high:
            middle = (low + high) // 2
            found = yield self._runs(conversation.until(answers[middle] + 1))
            if len(found.trained) <= self._form.max_tokens:
                fitting, low = found, middle + 1
            else:
                high = middle
        if fitting is None:
            raise RowRefused(f"its first answer ends beyond {self._form.max_tokens} tokens")
        return fitting

    def _runs(self, conversation: Conversation) -> list[Run]:
        return self._chat.runs(conversation, self._form.loss_on)


def nothing_to_learn(conversation: Conversation) -> RowRefused:
    if conversation.context_only:
        return RowRefused("its answers are marked as not to be learned")
    return RowRefused("nothing in it to learn")


def text_bytes(turns: list[dict[str, Any]]) -> int:
    return sum(len(str(turn.get("content") or "").encode()) for turn in turns)
