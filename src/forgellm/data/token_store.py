"""A dataset's tokens on disk: made once per content and tokenizer, then only mapped into memory.

<workspace>/.forgellm/cache/tokens/<key>/
    tokens.bin      uint32, little endian: all documents, one after another
    offsets.npy     int64 [documents + 1]: where each document starts, and the end
    hashes.npy      uint8 [documents, 16]: blake2b of each document's text
    trained.bin     uint8, of conversations alone: 1 for each token that is learned
    rejected.npy    int64 [documents], of pairs alone: where the rejected conversation starts
    meta.json       counts, what was skipped, and size and sha256 of the files above
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgellm.data.documents import ReadReport
from forgellm.data.token_cache import touch_entry

HASH_BYTES = 16
_FILES = ("tokens.bin", "offsets.npy", "hashes.npy")
TRAINED_FILE = "trained.bin"
REJECTED_FILE = "rejected.npy"


@dataclass(frozen=True)
class TokenStore:
    """A tokenised dataset. Each document is [bos, where the model has one] + text + document end.

    Attributes:
        key: name of the cache entry; the same data and tokenizer give the same key.
        fingerprint: that of the dataset's files.
        content_sha256: of all of its files; stores of the same content give the same batches.
        tokens: uint32 [tokens], mapped from disk.
        offsets: int64 [documents + 1], mapped from disk.
        hashes: uint8 [documents, HASH_BYTES], by text, mapped from disk.
        trained: uint8 [tokens], mapped from disk: 1 for what is learned. None where all is.
        rejected: int64 [documents], mapped from disk: where in each pair the rejected conversation
            starts. None where documents are no pairs.
    """

    key: str
    fingerprint: str
    tokens: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    report: ReadReport
    trained: NDArray[np.uint8] | None = None
    rejected: NDArray[np.int64] | None = None
    content_sha256: str = ""


def open_store(cache: Path, key: str) -> TokenStore | None:
    """The cache entry `key`, whether or not its dataset still exists; None if absent or damaged."""
    folder = cache / key
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        for name in (*_FILES, *(meta["files"].keys() & {TRAINED_FILE, REJECTED_FILE})):
            if file_identity(folder / name) != meta["files"][name]:
                return None
        tokens = _map(folder / "tokens.bin", np.dtype("<u4"))
        offsets, hashes = (_map_npy(folder / name) for name in _FILES[1:])
        report = ReadReport.from_dict(meta["report"])
        trained = rejected = None
        if TRAINED_FILE in meta["files"]:
            trained = _map(folder / TRAINED_FILE, np.dtype(np.uint8))
        if REJECTED_FILE in meta["files"]:
            rejected = _map_npy(folder / REJECTED_FILE)
        touch_entry(folder)
        content = hashlib.sha256(json.dumps(meta["files"], sort_keys=True).encode()).hexdigest()
        fingerprint = meta["fingerprint"]
        return TokenStore(
            key, fingerprint, tokens, offsets, hashes, report, trained, rejected, content
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def file_identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size_bytes": path.stat().st_size, "sha256": digest}


def _map(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _map_npy(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, allow_pickle=False, mmap_mode="r")
    return array
