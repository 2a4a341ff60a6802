"""The documents of a dataset folder as a token store, made in constant memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from forgellm.data.bulk_encoder import TOKEN_BYTES
from forgellm.data.documents import (
    DatasetFile,
    Listing,
    ReadReport,
    dataset_files,
    fingerprint_of,
    read_file,
)
from forgellm.data.growing_files import GrowingFiles
from forgellm.data.large_text import is_large_text, read_large_text
from forgellm.data.long_text import split_parts
from forgellm.data.progress import OnProgress, Tokenised
from forgellm.data.readers import READER_VERSION
from forgellm.data.store_build import build_store
from forgellm.data.token_store import HASH_BYTES, TokenStore, open_store
from forgellm.data.tokenizer import Tokenizer

_FORMAT_VERSION = 2
_BATCH_CHARACTERS = 1_000_000  # the library needs some 120 bytes per character while it encodes
_BATCH_PIECES = 4096
_PIECE_CHARACTERS = 32_000  # a batch of them keeps many cores busy
_MARK_BYTES = 8_000_000
_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "tokens.bin": ("<u4", ()),
    "offsets.npy": ("<i8", ()),
    "hashes.npy": ("u1", (HASH_BYTES,)),
}


def token_store(
    dataset: Path,
    tokenizer: Tokenizer,
    cache: Path,
    on_progress: OnProgress = lambda _: None,
    *,
    skip_unreadable: bool = False,
) -> TokenStore:
    """The tokens of the dataset folder, from the cache if it has them.

    Raises DataError if the files change meanwhile, or unless `skip_unreadable` if one cannot be read
    for a reason outside it; DiskFull.
    """
    listing = dataset_files(dataset)
    if not skip_unreadable:
        listing.require_whole()
    on_wait = partial(on_progress, Tokenised(0, listing.total_bytes, 0))
    fingerprint = fingerprint_of(listing.files, on_wait)
    parts = (_FORMAT_VERSION, READER_VERSION, fingerprint, tokenizer.fingerprint)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    store = open_store(cache, key) or build_store(
        cache / key,
        fingerprint,
        _COLUMNS,
        lambda files: _Writer(files, listing, tokenizer, on_progress, skip_unreadable).write(),
        lambda: dataset_files(dataset).files == listing.files,
        on_wait,
    )
    # The cached report knows only readable files; what else lies in the folder is looked up anew.
    store.report.skipped[:0] = listing.skipped
    return store


@dataclass
class _Source:
    """A file while it is read.

    Attributes:
        before: counts of the report as they were before this file.
        earlier_bytes: of the files before it.
    """

    number: int
    file: DatasetFile
    before: dict[str, int]
    earlier_bytes: int


@dataclass
class _Piece:
    """A stretch of a document that is encoded at once.

    Attributes:
        number: counts the pieces of a file.
        text_bytes: of the file, up to the end of the piece.
        hash: that of the document where this is its last piece.
    """

    source: _Source
    number: int
    text: str
    text_bytes: int
    starts_document: bool
    hash: bytes | None


class _Writer:
    """Goes on where the files were last marked."""

    def __init__(
        self,
        files: GrowingFiles,
        listing: Listing,
        tokenizer: Tokenizer,
        on_progress: OnProgress,
        skip_unreadable: bool,
    ) -> None:
        self._files, self._listing, self._tokenizer = files, listing, tokenizer
        self._on_progress, self._skip_unreadable = on_progress, skip_unreadable
        bos_id = tokenizer.bos_id
        self._start = b"" if bos_id is None else bos_id.to_bytes(TOKEN_BYTES, "little")
        self._end = tokenizer.document_end_id.to_bytes(TOKEN_BYTES, "little")
        state: dict[str, Any] = files.state or {"file": 0, "pieces": 0, "report": {}}
        self._first_file, self._pieces_done = state["file"], state["pieces"]
        self._report = ReadReport.from_dict(state["report"]) if state["report"] else ReadReport()
        self._num_tokens = files.num_rows("tokens.bin")
        if not files.num_rows("offsets.npy"):
            files.append("offsets.npy", bytes(8))

    def write(self) -> ReadReport:
        unmarked = 0
        for batch, encoded in self._encoded():
            for piece, ids in zip(batch, encoded, strict=True):
                self._append(piece, ids)
                unmarked += len(piece.text)
            last = batch[-1]
            # Who goes on from a mark reads again what failed after it.
            if unmarked >= _MARK_BYTES and not self._report.missing:
                unmarked = 0
                self._mark(last)
            done = last.source.earlier_bytes + min(last.text_bytes, last.source.file.size_bytes)
            self._on_progress(Tokenised(done, self._listing.total_bytes, self._num_tokens))
        total = self._listing.total_bytes
        self._on_progress(Tokenised(total, total, self._num_tokens))
        return self._report

    def _append(self, piece: _Piece, ids: bytes) -> None:
        if piece.starts_document:
            ids = self._start + ids
        if piece.hash is not None:
            ids += self._end
        self._files.append("tokens.bin", ids)
        self._num_tokens += len(ids) // TOKEN_BYTES
        if piece.hash is not None:
            self._files.append("offsets.npy", self._num_tokens.to_bytes(8, "little"))
            self._files.append("hashes.npy", piece.hash)

    def _mark(self, last: _Piece) -> None:
        before = last.source.before
        skipped = self._report.skipped[: before["skipped"]]
        report = ReadReport(before["files"], before["documents"], before["text_bytes"], skipped)
        self._files.mark(
            {"file": last.source.number, "pieces": last.number + 1, "report": report.to_dict()}
        )

    def _encoded(self) -> Iterator[tuple[list[_Piece], list[bytes]]]:
        """Batches with their ids; while one is encoded, on all cores, the next is read."""
        with ThreadPoolExecutor(1, "tokenizer") as pool:
            waiting = None
            for batch in _batches(self._pieces()):
                ids = pool.submit(self._tokenizer.encode_batch, [piece.text for piece in batch])
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                waiting = batch, ids
            if waiting is not None:
                yield waiting[0], waiting[1].result()

    def _pieces(self) -> Iterator[_Piece]:
        files = self._listing.files
        earlier_bytes = sum(file.size_bytes for file in files[: self._first_file])
        for number, file in enumerate(files[self._first_file :], self._first_file):
            report = self._report
            before = {
                "files": report.files,
                "documents": report.documents,
                "text_bytes": report.text_bytes,
                "skipped": len(report.skipped),
            }
            done = self._pieces_done if number == self._first_file else 0
            source = _Source(number, file, before, earlier_bytes)
            for piece in self._pieces_of(source):
                if piece.number >= done:
                    yield piece
            if not self._skip_unreadable:
                report.require_whole()
            earlier_bytes += file.size_bytes

    def _pieces_of(self, source: _Source) -> Iterator[_Piece]:
        number = text_bytes = 0
        for parts in _documents(source.file, self._report):
            digest = hashlib.blake2b(digest_size=HASH_BYTES)
            earlier: str | None = None
            starts = True
            for text in split_parts(
                _hashed(parts, digest), _PIECE_CHARACTERS, self._tokenizer.encode
            ):
                if earlier is not None:
                    text_bytes += len(earlier)
                    yield _Piece(source, number, earlier, text_bytes, starts, None)
                    number, starts = number + 1, False
                earlier = text
            assert earlier is not None  # a document has text
            text_bytes += len(earlier)
            yield _Piece(source, number, earlier, text_bytes, starts, digest.digest())
            number += 1


def _documents(file: DatasetFile, report: ReadReport) -> Iterator[Iterator[str]]:
    """The documents of a file, each in parts. What cannot be read is noted in `report`."""
    if is_large_text(file):
        yield from read_large_text(file, report)
    else:
        for document in read_file(file, report):
            yield iter([document.text])


def _hashed(parts: Iterator[str], digest: hashlib.blake2b) -> Iterator[str]:
    for part in parts:
        digest.update(part.encode())
        yield part


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
