"""The beginning of a dataset of conversations or pairs as a run would see it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forgellm.data.batches import Batch
from forgellm.data.chat.encoding import ChatFormat, Entry, RowEncoder
from forgellm.data.chat.packing import packed_conversations
from forgellm.data.chat.pairs import row_encoder
from forgellm.data.chat.turn_ends import turn_ends
from forgellm.data.documents import DatasetFile, ReadReport, dataset_files
from forgellm.data.preview import Part, Preview, Previewed, parts_of
from forgellm.data.reading.reader import Unreadable, reason_of
from forgellm.data.reading.row_readers import ROW_READERS
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

    Raises TemplateRefused if the template is broken.
    """
    listing = dataset_files(dataset)
    files = [file for file in listing.files if file.path.suffix.lower() in ROW_READERS]
    sample = _Sample(row_encoder(tokenizer, form))
    sample.skipped += [f"{item.source}: {item.reason}" for item in listing.skipped]
    sample.read(files)
    store = sample.store(form.in_pairs)
    blocks: list[Batch] = []
    parts: list[Part] = []
    if sample.found:
        split = split_documents(store, recipe.validation_split, recipe.seed)
        parts = parts_of(store.offsets, split)
        if len(split.train):
            packed = packed_conversations(store, split.train, seq_len, recipe.seed)
            blocks = [packed.row(number) for number in range(num_blocks)]
    return Preview(
        file_count=len(files),
        documents=sample.documents(),
        parts=parts,
        blocks=blocks,
        skipped=sample.skipped,
        notes=[
            *turn_ends(tokenizer, form.template).warnings,
            *(f"{note}: {count:,} rows" for note, count in sample.notes().items()),
        ],
        is_complete=sample.is_complete,
    )


@dataclass
class _Sample:
    encoder: RowEncoder
    found: list[Entry] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    is_complete: bool = True

    def read(self, files: list[DatasetFile]) -> None:
        for source, row in self._rows(files):
            if len(self.found) == _MAX_ROWS or len(self.skipped) >= _MAX_SKIPPED:
                self.is_complete = False
                return
            (found,) = self.encoder.encode([row])
            if isinstance(found, str):
                self.skipped.append(f"{source}: {found}")
                continue
            self.found.append(found)
            self.sources.append(source)

    def notes(self) -> Counter[str]:
        """What of the rows is not used, and of how many."""
        return Counter(note for entry in self.found for note in entry.notes)

    def documents(self) -> list[Previewed]:
        return [
            Previewed(source, entry.text_bytes, len(entry.tokens.trained))
            for source, entry in zip(self.sources, self.found, strict=True)
        ]

    def store(self, in_pairs: bool) -> TokenStore:
        """What `chat_store` would make of these rows, in memory."""
        ids = b"".join(entry.tokens.ids for entry in self.found)
        trained = b"".join(entry.tokens.trained for entry in self.found)
        offsets = np.cumsum([0, *(len(e.tokens.trained) for e in self.found)], dtype=np.int64)
        hashes = b"".join(
            hashlib.blake2b(entry.key, digest_size=HASH_BYTES).digest() for entry in self.found
        )
        borders = [entry.rejected_at or 0 for entry in self.found]
        return TokenStore(
            key="",
            fingerprint="",
            tokens=np.frombuffer(ids, dtype="<u4"),
            offsets=offsets,
            hashes=np.frombuffer(hashes, dtype=np.uint8).reshape(-1, HASH_BYTES),
            report=ReadReport(),
            trained=np.frombuffer(trained, dtype=np.uint8),
            rejected=offsets[:-1] + np.array(borders, dtype=np.int64) if in_pairs else None,
        )

    def _rows(self, files: list[DatasetFile]) -> Iterator[tuple[str, Any]]:
        for file in files:

            def skip(reason: str, number: int, name: str = file.name) -> None:
                self.skipped.append(f"{name}:{number}: {reason}")

            try:
                for number, row in ROW_READERS[file.path.suffix.lower()](file.path, skip):
                    yield f"{file.name}:{number}", row
            except (Unreadable, UnicodeDecodeError, OSError) as error:
                self.skipped.append(f"{file.name}: {reason_of(error)}")
