"""A dataset's tokens on disk: made once per content and tokenizer, then only mapped into memory.

<workspace>/.forgellm/cache/tokens/<key>/
    tokens.bin      uint32, little endian: all documents, one after another
    offsets.npy     int64 [documents + 1]: where each document starts, and the end
    hashes.npy      uint8 [documents, 16]: blake2b of each document's text
    trained.bin     uint8, of conversations alone: 1 for each token that is learned
    meta.json       counts, what was skipped, and size and sha256 of the files above
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forgellm.atomic import sync, sync_tree
from forgellm.data.documents import Listing, ReadReport, dataset_files, fingerprint_of, read_file
from forgellm.data.long_text import split_text
from forgellm.data.readers import READER_VERSION
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import DataError, DiskFull

Progress = Callable[[int, int], None]
"""Called with (bytes of text tokenised, bytes of the dataset's files)."""

HASH_BYTES = 16
_FORMAT_VERSION = 1
_BATCH_CHARACTERS = 1_000_000  # the library needs some 120 bytes per character while it encodes
_BATCH_PIECES = 4096
_PIECE_CHARACTERS = 100_000
_ABANDONED_SECONDS = 24 * 3600
_FILES = ("tokens.bin", "offsets.npy", "hashes.npy")
TRAINED_FILE = "trained.bin"


@dataclass(frozen=True)
class TokenStore:
    """A tokenised dataset. Each document is [bos, where the model has one] + text + document end.

    Attributes:
        key: name of the cache entry; the same data and tokenizer give the same key.
        fingerprint: that of the dataset's files.
        tokens: uint32 [tokens], mapped from disk.
        offsets: int64 [documents + 1].
        hashes: uint8 [documents, HASH_BYTES], by text.
        trained: uint8 [tokens], mapped from disk: 1 for what is learned. None where all is.
    """

    key: str
    fingerprint: str
    tokens: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    report: ReadReport
    trained: NDArray[np.uint8] | None = None


def token_store(
    dataset: Path, tokenizer: Tokenizer, cache: Path, on_progress: Progress | None = None
) -> TokenStore:
    """The tokens of the dataset folder, from the cache if it has them.

    Raises DataError if the files change meanwhile, DiskFull.
    """
    listing = dataset_files(dataset)
    fingerprint = fingerprint_of(listing.files)
    parts = (_FORMAT_VERSION, READER_VERSION, fingerprint, tokenizer.fingerprint)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    store = open_store(cache, key)
    if store is None:
        store = build_store(
            cache / key,
            fingerprint,
            lambda work: _write_tokens(work, listing, tokenizer, on_progress),
            lambda: dataset_files(dataset).files == listing.files,
        )
    # The cached report knows only readable files; what else lies in the folder is looked up anew.
    store.report.skipped[:0] = listing.skipped
    return store


def open_store(cache: Path, key: str) -> TokenStore | None:
    """The cache entry `key`, whether or not its dataset still exists; None if absent or damaged."""
    folder = cache / key
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        for name in (*_FILES, *(meta["files"].keys() & {TRAINED_FILE})):
            if _identity(folder / name) != meta["files"][name]:
                return None
        tokens = _map(folder / "tokens.bin", np.dtype("<u4"))
        offsets, hashes = (np.load(folder / name, allow_pickle=False) for name in _FILES[1:])
        report = ReadReport.from_dict(meta["report"])
        trained = None
        if TRAINED_FILE in meta["files"]:
            trained = _map(folder / TRAINED_FILE, np.dtype(np.uint8))
        return TokenStore(key, meta["fingerprint"], tokens, offsets, hashes, report, trained)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build_store(
    target: Path,
    fingerprint: str,
    write: Callable[[Path], ReadReport],
    is_unchanged: Callable[[], bool],
) -> TokenStore:
    """A new cache entry, whose files `write` puts into the folder it is given.

    Raises DataError if the dataset changes meanwhile, DiskFull.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent)
    # Each builder has a folder of its own; the rename at the end decides whose result is kept.
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        report = write(work)
        if not is_unchanged():
            raise DataError(
                "The dataset changed while it was read",
                suggestion="Start again when its files are complete.",
            )
        _write_meta(work, fingerprint, report)
        store = open_store(work.parent, work.name)  # stays mapped whatever becomes of the entry
        if store is None:
            raise DataError(
                "The tokenised dataset could not be read back",
                suggestion="Start again; if it recurs, check the disk.",
            )
        _install(work, target)
        return replace(store, key=target.name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                "The disk is full: the tokenised dataset could not be written",
                suggestion="Free disk space, then start again.",
            ) from None
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Piece(NamedTuple):
    text: str
    starts_document: bool
    ends_document: bool


def _write_tokens(
    work: Path, listing: Listing, tokenizer: Tokenizer, on_progress: Progress | None
) -> ReadReport:
    report = ReadReport()
    total_bytes = sum(file.size_bytes for file in listing.files)
    offsets, hashes = array("q", [0]), bytearray()
    num_tokens = 0
    with (work / "tokens.bin").open("wb") as file:
        for batch in _batches(_pieces(listing, tokenizer, report, hashes)):
            encoded = tokenizer.encode_batch([piece.text for piece in batch])
            for piece, ids in zip(batch, encoded, strict=True):
                if piece.starts_document and tokenizer.bos_id is not None:
                    ids.insert(0, tokenizer.bos_id)
                if piece.ends_document:
                    ids.append(tokenizer.document_end_id)
                file.write(np.array(ids, dtype="<u4").tobytes())
                num_tokens += len(ids)
                if piece.ends_document:
                    offsets.append(num_tokens)
            if on_progress is not None:
                on_progress(report.text_bytes, total_bytes)
    np.save(work / "offsets.npy", np.frombuffer(offsets, dtype=np.int64))
    hash_rows = np.frombuffer(hashes, dtype=np.uint8).reshape(-1, HASH_BYTES)
    np.save(work / "hashes.npy", hash_rows)
    return report


def _pieces(
    listing: Listing, tokenizer: Tokenizer, report: ReadReport, hashes: bytearray
) -> Iterator[_Piece]:
    for file in listing.files:
        for document in read_file(file, report):
            text = document.text
            hashes += hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()
            position = 0
            for piece in split_text(text, _PIECE_CHARACTERS, tokenizer.encode):
                starts, position = position == 0, position + len(piece)
                yield _Piece(piece, starts, position == len(text))


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_meta(work: Path, fingerprint: str, report: ReadReport) -> None:
    meta = {
        "fingerprint": fingerprint,
        "report": report.to_dict(),
        "files": {path.name: _identity(path) for path in sorted(work.iterdir())},
    }
    (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size_bytes": path.stat().st_size, "sha256": digest}


def _install(work: Path, target: Path) -> None:
    """Rename `work` to `target`. An entry already there wins if it is sound: it is the same."""
    sync_tree(work)
    if target.exists() and open_store(target.parent, target.name) is None:
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        with contextlib.suppress(FileNotFoundError):  # another builder may have been quicker
            target.rename(aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)
    try:
        work.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    sync(target.parent)


def _remove_abandoned(cache: Path) -> None:
    """Builders that were killed leave their folders behind."""
    for work in cache.glob(".*-*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (work, *work.iterdir()))
            if time.time() - newest > _ABANDONED_SECONDS:
                shutil.rmtree(work, ignore_errors=True)


def _map(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
