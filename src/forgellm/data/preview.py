"""The beginning of a dataset as a run would see it: split, shuffled, tokenised and packed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forgellm.data.batches import Batch
from forgellm.data.documents import dataset_files
from forgellm.data.packing import PackedStream
from forgellm.data.sample import Sample, encode_document, sample_documents
from forgellm.data.split import Split, split_documents
from forgellm.data.token_store import HASH_BYTES, TokenStore
from forgellm.data.tokenizer import Tokenizer
from forgellm.schema.recipe import Recipe

Part = Literal["train", "validation", "both"]

_MAX_CHARACTERS = 2_000_000
_MAX_DOCUMENTS = 20_000


class Previewed(NamedTuple):
    """A document, conversation or pair."""

    source: str
    size_bytes: int
    num_tokens: int


@dataclass(frozen=True)
class Preview:
    """Of a dataset that is not `is_complete` only the first documents; the blocks are theirs.

    Attributes:
        parts: which side of the split each document is on; a lone document is on both.
        blocks: batches of one row each, the first that would be trained on.
        notes: what is doubtful about the end of answers; what of the rows of conversations or pairs
            is not used, and of how many.
    """

    file_count: int
    documents: list[Previewed]
    parts: list[Part]
    blocks: list[Batch]
    skipped: list[str]
    is_complete: bool
    notes: list[str] = field(default_factory=list)


def preview_dataset(
    dataset: Path, tokenizer: Tokenizer, seq_len: int, num_blocks: int, recipe: Recipe
) -> Preview:
    """`recipe` gives the seed and the split. Blocks are empty where there is nothing to train on."""
    listing = dataset_files(dataset)
    sample = sample_documents(listing.files, _MAX_CHARACTERS, _MAX_DOCUMENTS)
    store = _store(sample, tokenizer)
    skipped = [
        f"{item.source}: {item.reason}" for item in (*listing.skipped, *store.report.skipped)
    ]
    blocks: list[Batch] = []
    parts: list[Part] = []
    if sample.documents:
        split = split_documents(store, recipe.validation_split, recipe.seed)
        parts = parts_of(store.offsets, split)
        if split.train.num_targets:
            stream = PackedStream(store.tokens, split.train, seq_len, recipe.seed)
            blocks = [stream.row(number) for number in range(num_blocks)]
    lengths: list[int] = np.diff(store.offsets).tolist()
    documents = [
        Previewed(document.source, len(document.text.encode()), num_tokens)
        for document, num_tokens in zip(sample.documents, lengths, strict=True)
    ]
    return Preview(len(listing.files), documents, parts, blocks, skipped, sample.is_complete)


def _store(sample: Sample, tokenizer: Tokenizer) -> TokenStore:
    """What `token_store` would make of these documents, in memory."""
    encoded = [encode_document(document.text, tokenizer) for document in sample.documents]
    hashes = b"".join(
        hashlib.blake2b(document.text.encode(), digest_size=HASH_BYTES).digest()
        for document in sample.documents
    )
    return TokenStore(
        key="",
        fingerprint="",
        tokens=np.array([token for ids in encoded for token in ids], dtype=np.uint32),
        offsets=np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        hashes=np.frombuffer(hashes, dtype=np.uint8).reshape(-1, HASH_BYTES),
        report=sample.report,
    )


def parts_of(offsets: NDArray[np.int64], split: Split) -> list[Part]:
    """On which side of the split each document is."""
    train: dict[int, int] = dict(
        zip(split.train.starts.tolist(), split.train.ends.tolist(), strict=True)
    )
    return [
        "validation" if start not in train else "train" if train[start] == end else "both"
        for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
