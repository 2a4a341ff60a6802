"""The beginning of a dataset of conversations as an instruction run would see it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from forgellm.data.chat.encoding import ChatFormat
from forgellm.data.chat.files import ROW_READERS
from forgellm.data.chat.packing import PackedConversations
from forgellm.data.chat.rows import RowRefused, conversation_of
from forgellm.data.chat.template import ChatTemplate
from forgellm.data.chat.tokens import Tokens, chat_tokens
from forgellm.data.documents import DatasetFile, Document, ReadReport, dataset_files
from forgellm.data.preview import Preview, parts_of
from forgellm.data.reading.reader import Unreadable, reason_of
from forgellm.data.split import split_documents
from forgellm.data.token_store import HASH_BYTES, TokenStore
from forgellm.data.tokenizer import Tokenizer
from forgellm.schema.recipe import Recipe

_MAX_ROWS = 400
_MAX_SKIPPED = 100


def preview_conversations(
    dataset: Path,
    tokenizer: Tokenizer,
    form: ChatFormat,
    seq_len: int,
    num_blocks: int,
    recipe: Recipe,
) -> Preview:
    """The first rows, tokenised and packed with the recipe's split and seed.

    A conversation that is too long is named in `skipped`; a run would cut it at a turn's end.
    Raises TemplateRefused if the template is broken.
    """
    listing = dataset_files(dataset)
    files = [file for file in listing.files if file.path.suffix.lower() in ROW_READERS]
    sample = _Sample(tokenizer, form)
    sample.skipped += [f"{item.source}: {item.reason}" for item in listing.skipped]
    sample.read(files)
    store = sample.store()
    blocks, parts = [], []
    if sample.found:
        split = split_documents(store, recipe.validation_split, recipe.seed)
        parts = parts_of(store.offsets, split)
        if len(split.train):
            packed = PackedConversations(store, split.train, seq_len, recipe.seed)
            blocks = [packed.row(number) for number in range(num_blocks)]
    return Preview(
        file_count=len(files),
        documents=sample.documents,
        num_tokens=np.diff(store.offsets).tolist(),
        parts=parts,
        blocks=blocks,
        skipped=sample.skipped,
        is_complete=sample.is_complete,
    )


@dataclass
class _Sample:
    tokenizer: Tokenizer
    form: ChatFormat
    found: list[Tokens] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    is_complete: bool = True

    def read(self, files: list[DatasetFile]) -> None:
        template = ChatTemplate(self.tokenizer, self.form.template)
        for file, number, row in self._rows(files):
            if len(self.found) == _MAX_ROWS or len(self.skipped) >= _MAX_SKIPPED:
                self.is_complete = False
                return
            source = f"{file.name}:{number}"
            try:
                conversation = conversation_of(row, self.form.columns)
                tokens = chat_tokens(conversation, self.tokenizer, template, self.form.loss_on)
                if len(tokens.ids) > self.form.max_tokens:
                    raise RowRefused(f"longer than {self.form.max_tokens} tokens; a run cuts it")
            except RowRefused as error:
                self.skipped.append(f"{source}: {error}")
                continue
            text = "".join(str(turn.get("content") or "") for turn in conversation.turns)
            self.found.append(tokens)
            self.documents.append(Document(source, text))

    def store(self) -> TokenStore:
        ids = [np.array(tokens.ids, dtype=np.uint32) for tokens in self.found]
        trained = [np.array(tokens.trained, dtype=np.uint8) for tokens in self.found]
        hashes = b"".join(
            hashlib.blake2b(part.tobytes(), digest_size=HASH_BYTES).digest() for part in ids
        )
        return TokenStore(
            key="",
            fingerprint="",
            tokens=np.concatenate([np.array([], dtype=np.uint32), *ids]),
            offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
            hashes=np.frombuffer(hashes, dtype=np.uint8).reshape(-1, HASH_BYTES),
            report=ReadReport(),
            trained=np.concatenate([np.array([], dtype=np.uint8), *trained]),
        )

    def _rows(self, files: list[DatasetFile]) -> Iterator[tuple[DatasetFile, int, object]]:
        for file in files:

            def skip(reason: str, number: int, name: str = file.name) -> None:
                self.skipped.append(f"{name}:{number}: {reason}")

            try:
                for number, row in ROW_READERS[file.path.suffix.lower()](file.path, skip):
                    yield file, number, row
            except (Unreadable, UnicodeDecodeError, OSError) as error:
                self.skipped.append(f"{file.name}: {reason_of(error)}")
