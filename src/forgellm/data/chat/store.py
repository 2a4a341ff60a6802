"""A dataset of conversations or pairs as tokens on disk, and what of them is learned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from forgellm.data.chat.encoding import ChatFormat, ConversationEncoder, Entry, RowEncoder
from forgellm.data.chat.files import ROW_READERS
from forgellm.data.chat.pairs import PairEncoder
from forgellm.data.chat.rows import RowRefused
from forgellm.data.documents import (
    DatasetFile,
    ReadReport,
    Skipped,
    dataset_files,
    fingerprint_of,
)
from forgellm.data.growing_files import GrowingFiles
from forgellm.data.progress import OnProgress, Tokenised
from forgellm.data.reading.reader import Unreadable, reason_of
from forgellm.data.store_build import build_store
from forgellm.data.token_store import (
    HASH_BYTES,
    REJECTED_FILE,
    TRAINED_FILE,
    TokenStore,
    open_store,
)
from forgellm.data.tokenizer import Tokenizer

_FORMAT_VERSION = 1
_PROGRESS_EVERY = 64  # rows
_MARK_BYTES = 2_000_000
_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "tokens.bin": ("<u4", ()),
    "offsets.npy": ("<i8", ()),
    "hashes.npy": ("u1", (HASH_BYTES,)),
    TRAINED_FILE: ("u1", ()),
}
_PAIR_COLUMNS = _COLUMNS | {REJECTED_FILE: ("<i8", ())}


def chat_store(
    dataset: Path,
    tokenizer: Tokenizer,
    form: ChatFormat,
    cache: Path,
    on_progress: OnProgress = lambda _: None,
) -> TokenStore:
    """The conversations of the dataset folder, from the cache if it has them. A store's documents
    are conversations, or pairs of them, each with at least one learned token.

    Raises TemplateRefused if the template is broken, DataError if the files change meanwhile,
    DiskFull.
    """
    listing = dataset_files(dataset)
    files = [file for file in listing.files if file.path.suffix.lower() in ROW_READERS]
    on_wait = partial(on_progress, Tokenised(0, sum(file.size_bytes for file in files), 0))
    fingerprint = fingerprint_of(files, on_wait)
    columns = sorted((form.columns or {}).items())
    decides = (form.template, form.loss_on, form.max_tokens, columns)
    kind = "pairs" if form.in_pairs else "chat"
    parts = (kind, _FORMAT_VERSION, fingerprint, tokenizer.fingerprint, decides)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    encoder = (PairEncoder if form.in_pairs else ConversationEncoder)(tokenizer, form)
    store = open_store(cache, key) or build_store(
        cache / key,
        fingerprint,
        _PAIR_COLUMNS if form.in_pairs else _COLUMNS,
        lambda output: _Writer(output, files, encoder, on_progress).write(),
        lambda: dataset_files(dataset).files == listing.files,
        on_wait,
    )
    nothing = "holds no pairs" if form.in_pairs else "holds no conversations"
    others = [Skipped(f.name, nothing) for f in listing.files if f not in files]
    store.report.skipped[:0] = [*listing.skipped, *others]
    return store


@dataclass
class _Place:
    """How far the rows are read.

    Attributes:
        row: number of the last row of the file that is done; 0 before the first.
        reasons: why rows of the file were left out, each with the first such row and their count.
        documents_before: conversations of the files before.
        file_text_bytes: text in the file's rows so far.
    """

    file: int = 0
    row: int = 0
    reasons: dict[str, tuple[int, int]] = field(default_factory=dict)
    documents_before: int = 0
    file_text_bytes: int = 0

    def skip(self, reason: str, number: int) -> None:
        if number > self.row:
            first, count = self.reasons.get(reason, (number, 0))
            self.reasons[reason] = (first, count + 1)


class _Writer:
    """Goes through the rows once, one at a time, from where the output was last marked."""

    def __init__(
        self,
        output: GrowingFiles,
        files: list[DatasetFile],
        encoder: RowEncoder,
        on_progress: OnProgress,
    ) -> None:
        self._output, self._files, self._encoder = output, files, encoder
        self._on_progress = on_progress
        self._place, self._report = _Place(), ReadReport()
        if (state := output.state) is not None:
            self._place = _Place(**state["place"])
            self._report = ReadReport.from_dict(state["report"])
        self._num_tokens = output.num_rows("tokens.bin")
        if not output.num_rows("offsets.npy"):
            output.append("offsets.npy", bytes(8))

    def write(self) -> ReadReport:
        unmarked = 0
        for found in self._conversations():
            text_bytes = self._append(found)
            unmarked += text_bytes
            if unmarked >= _MARK_BYTES:
                unmarked = 0
                self._output.mark({"place": asdict(self._place), "report": self._report.to_dict()})
        self._tell()
        return self._report

    def _append(self, found: Entry) -> int:
        ids = np.array(found.tokens.ids, dtype="<u4").tobytes()
        self._output.append("tokens.bin", ids)
        self._output.append(TRAINED_FILE, bytes(found.tokens.trained))
        if found.rejected_at is not None:
            start = self._num_tokens + found.rejected_at
            self._output.append(REJECTED_FILE, start.to_bytes(8, "little"))
        self._num_tokens += len(found.tokens.ids)
        self._output.append("offsets.npy", self._num_tokens.to_bytes(8, "little"))
        self._output.append(
            "hashes.npy", hashlib.blake2b(found.key, digest_size=HASH_BYTES).digest()
        )
        self._report.documents += 1
        self._report.text_bytes += found.text_bytes
        self._report.cut += found.is_cut
        self._place.file_text_bytes += found.text_bytes
        return found.text_bytes

    def _tell(self) -> None:
        sizes = [file.size_bytes for file in self._files]
        done = sum(sizes[: self._place.file])
        if self._place.file < len(sizes):
            done += min(self._place.file_text_bytes, sizes[self._place.file])
        self._on_progress(Tokenised(done, sum(sizes), self._num_tokens))

    def _conversations(self) -> Iterator[Entry]:
        while self._place.file < len(self._files):
            place, file = self._place, self._files[self._place.file]
            unreadable = None
            try:
                yield from self._rows_of(file)
            except (Unreadable, UnicodeDecodeError, OSError) as error:
                unreadable = reason_of(error)
            for reason, (first, count) in place.reasons.items():
                self._report.skipped.append(
                    Skipped(file.name, f"{reason}, first at {first}", count)
                )
            if unreadable:
                self._report.skipped.append(Skipped(file.name, unreadable))
            self._report.files += self._report.documents > place.documents_before
            self._place = _Place(place.file + 1, documents_before=self._report.documents)

    def _rows_of(self, file: DatasetFile) -> Iterator[Entry]:
        place = self._place
        for number, row in ROW_READERS[file.path.suffix.lower()](file.path, place.skip):
            if number <= place.row:
                continue
            if number % _PROGRESS_EVERY == 0:
                self._tell()
            try:
                found = self._encoder.encode(row)
            except RowRefused as error:
                place.skip(str(error), number)
                continue
            place.row = number
            yield found
