"""A dataset of conversations as tokens on disk, beside which it stands what of them is learned."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forgellm.data.chat.files import ROW_READERS
from forgellm.data.chat.rows import Conversation, RowRefused, conversation_of
from forgellm.data.chat.template import ChatTemplate
from forgellm.data.chat.tokens import LossOn, Tokens, chat_tokens
from forgellm.data.documents import (
    DatasetFile,
    ReadReport,
    Skipped,
    dataset_files,
    fingerprint_of,
)
from forgellm.data.reading.reader import Unreadable, reason_of
from forgellm.data.token_store import (
    HASH_BYTES,
    TRAINED_FILE,
    Progress,
    TokenStore,
    build_store,
    open_store,
)
from forgellm.data.tokenizer import Tokenizer

_FORMAT_VERSION = 1
_PROGRESS_EVERY = 256


@dataclass(frozen=True)
class ChatFormat:
    """What decides the tokens of a row.

    Attributes:
        template: source of the chat template.
        max_tokens: longer conversations lose their last turns.
        columns: which column holds messages, user, assistant, system; None finds out.
    """

    template: str
    loss_on: LossOn
    max_tokens: int
    columns: Mapping[str, str] | None = None


def chat_store(
    dataset: Path,
    tokenizer: Tokenizer,
    form: ChatFormat,
    cache: Path,
    on_progress: Progress | None = None,
) -> TokenStore:
    """The conversations of the dataset folder, from the cache if it has them. A store's documents
    are conversations, each with at least one learned token.

    Raises TemplateRefused if the template is broken, DataError if the files change meanwhile,
    DiskFull.
    """
    listing = dataset_files(dataset)
    files = [file for file in listing.files if file.path.suffix.lower() in ROW_READERS]
    fingerprint = fingerprint_of(files)
    columns = sorted((form.columns or {}).items())
    decides = (form.template, form.loss_on, form.max_tokens, columns)
    parts = ("chat", _FORMAT_VERSION, fingerprint, tokenizer.fingerprint, decides)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    store = open_store(cache, key)
    if store is None:
        store = build_store(
            cache / key,
            fingerprint,
            lambda work: _Writer(work, files, tokenizer, form, on_progress).write(),
            lambda: dataset_files(dataset).files == listing.files,
        )
    others = [Skipped(f.name, "holds no conversations") for f in listing.files if f not in files]
    store.report.skipped[:0] = [*listing.skipped, *others]
    return store


@dataclass
class _Writer:
    """Goes through the rows once, one at a time."""

    work: Path
    files: list[DatasetFile]
    tokenizer: Tokenizer
    form: ChatFormat
    on_progress: Progress | None
    report: ReadReport = field(default_factory=ReadReport)

    def write(self) -> ReadReport:
        self._template = ChatTemplate(self.tokenizer, self.form.template)
        offsets, hashes = array("q", [0]), bytearray()
        total_bytes = sum(file.size_bytes for file in self.files)
        with (
            (self.work / "tokens.bin").open("wb") as tokens,
            (self.work / TRAINED_FILE).open("wb") as trained,
        ):
            for found in self._conversations():
                ids = np.array(found.ids, dtype="<u4").tobytes()
                tokens.write(ids)
                trained.write(bytes(found.trained))
                offsets.append(offsets[-1] + len(found.ids))
                hashes += hashlib.blake2b(ids, digest_size=HASH_BYTES).digest()
                if self.on_progress and len(offsets) % _PROGRESS_EVERY == 0:
                    self.on_progress(self.report.text_bytes, total_bytes)
        np.save(self.work / "offsets.npy", np.frombuffer(offsets, dtype=np.int64))
        rows = np.frombuffer(hashes, dtype=np.uint8).reshape(-1, HASH_BYTES)
        np.save(self.work / "hashes.npy", rows)
        return self.report

    def _conversations(self) -> Iterator[Tokens]:
        for file in self.files:
            reasons: dict[str, tuple[int, int]] = {}  # reason -> (first row, how many)
            before = self.report.documents
            yield from self._rows_of(file, reasons)
            for reason, (first, count) in reasons.items():
                self.report.skipped.append(Skipped(file.name, f"{reason}, first at {first}", count))
            self.report.files += self.report.documents > before

    def _rows_of(self, file: DatasetFile, reasons: dict[str, tuple[int, int]]) -> Iterator[Tokens]:
        def skip(reason: str, number: int) -> None:
            first, count = reasons.get(reason, (number, 0))
            reasons[reason] = (first, count + 1)

        unreadable = ""
        try:
            for number, row in ROW_READERS[file.path.suffix.lower()](file.path, skip):
                try:
                    yield self._tokens(row)
                except RowRefused as error:
                    skip(str(error), number)
        except (Unreadable, UnicodeDecodeError, OSError) as error:
            unreadable = reason_of(error)
        if unreadable:
            self.report.skipped.append(Skipped(file.name, unreadable))

    def _tokens(self, row: Any) -> Tokens:
        """Raises RowRefused."""
        conversation = conversation_of(row, self.form.columns)
        found = self._encoded(conversation)
        if len(found.ids) > self.form.max_tokens:
            found = self._cut(conversation)
            self.report.cut += 1
        if not any(found.trained[1:]):
            raise RowRefused("nothing in it to learn")
        self.report.documents += 1
        texts = (str(turn.get("content") or "") for turn in conversation.turns)
        self.report.text_bytes += sum(len(text.encode()) for text in texts)
        return found

    def _cut(self, conversation: Conversation) -> Tokens:
        """As many of the first turns as fit, up to an answer."""
        turns = conversation.turns
        answers = [n for n, turn in enumerate(turns) if turn["role"] == "assistant"]
        fitting: Tokens | None = None
        low, high = 0, len(answers) - 1  # one by one, a conversation of many turns would take hours
        while low < high:
            middle = (low + high) // 2
            part = Conversation(turns[: answers[middle] + 1], conversation.tools)
            found = self._encoded(part)
            if len(found.ids) <= self.form.max_tokens:
                fitting, low = found, middle + 1
            else:
                high = middle
        if fitting is None:
            raise RowRefused(f"its first answer ends beyond {self.form.max_tokens} tokens")
        return fitting

    def _encoded(self, conversation: Conversation) -> Tokens:
        return chat_tokens(conversation, self.tokenizer, self._template, self.form.loss_on)
