"""A dataset of conversations or pairs as tokens on disk, and what of them is learned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from forgellm.data.chat.encoding import ChatFormat, EncodedRow
from forgellm.data.chat.parallel import Encode, Row, encoding
from forgellm.data.documents import (
    DatasetFile,
    ReadReport,
    Skipped,
    dataset_files,
    fingerprint_of,
)
from forgellm.data.growing_files import GrowingFiles
from forgellm.data.kinds import OF_DOCUMENTS
from forgellm.data.progress import OnProgress, Tokenised
from forgellm.data.reading.patience import read_patiently
from forgellm.data.reading.reader import Passing, Unreadable, reason_of
from forgellm.data.reading.row_readers import ROW_READERS
from forgellm.data.store_build import build_store
from forgellm.data.token_store import (
    HASH_BYTES,
    REJECTED_FILE,
    TRAINED_FILE,
    TokenStore,
    open_store,
)
from forgellm.data.tokenizer import Tokenizer

_FORMAT_VERSION = 6
_BATCH_ROWS = 256  # fewer take longer to send than to encode
_MARK_BYTES = 2_000_000
_MAX_REASONS = 200  # of a file; a reason may name what millions of rows have each in another way
_OTHER = "for other reasons"
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
    *,
    skip_unreadable: bool = False,
) -> TokenStore:
    """The conversations of the dataset folder, from the cache if it has them. A store's documents
    are conversations, or pairs of them, each with at least one learned token.

    Raises TemplateRefused if the template is broken, DataError if the files change meanwhile, or
    unless `skip_unreadable` if one cannot be read for a reason outside it; DiskFull.
    """
    listing = dataset_files(dataset)
    if not skip_unreadable:
        listing.require_whole()
    files = [file for file in listing.files if file.path.suffix.lower() in ROW_READERS]
    on_wait = partial(on_progress, Tokenised(0, sum(file.size_bytes for file in files), 0))
    fingerprint = fingerprint_of(files, on_wait)
    columns = sorted((form.columns or {}).items())
    decides = (form.template, form.loss_on, form.max_tokens, columns)
    kind = "pairs" if form.in_pairs else "chat"
    parts = (kind, _FORMAT_VERSION, fingerprint, tokenizer.fingerprint, decides)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def write(output: GrowingFiles) -> ReadReport:
        with encoding(tokenizer, form, sum(file.size_bytes for file in files)) as encode:
            return _Writer(output, files, encode, on_progress, skip_unreadable).write()

    store = open_store(cache, key) or build_store(
        cache / key,
        fingerprint,
        _PAIR_COLUMNS if form.in_pairs else _COLUMNS,
        write,
        lambda: dataset_files(dataset).files == listing.files,
        on_wait,
    )
    others = [Skipped(file.name, OF_DOCUMENTS) for file in listing.files if file not in files]
    store.report.skipped[:0] = [*listing.skipped, *others]
    return store


@dataclass
class _Place:
    """How far the rows are read.

    Attributes:
        row: number of the last row of the file that is done; 0 before the first.
        reasons: why rows of the file were left out, each with the first such row and their count.
        notes: what of the file's rows was not used, each with the number of such rows.
        documents_before: conversations of the files before.
        file_text_bytes: text in the file's rows so far.
    """

    file: int = 0
    row: int = 0
    reasons: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    documents_before: int = 0
    file_text_bytes: int = 0

    def skip(self, reason: str, number: int) -> None:
        reason = reason if reason in self.reasons or len(self.reasons) < _MAX_REASONS else _OTHER
        first, count = self.reasons.get(reason, (number, 0))
        self.reasons[reason] = (first, count + 1)

    def note(self, notes: Sequence[str]) -> None:
        for note in notes:
            note = note if note in self.notes or len(self.notes) < _MAX_REASONS else _OTHER
            self.notes[note] = self.notes.get(note, 0) + 1


class _Writer:
    """Goes through the rows once, from where the output was last marked."""

    def __init__(
        self,
        output: GrowingFiles,
        files: list[DatasetFile],
        encode: Encode,
        on_progress: OnProgress,
        skip_unreadable: bool,
    ) -> None:
        self._output, self._files, self._encode = output, files, encode
        self._on_progress, self._skip_unreadable = on_progress, skip_unreadable
        self._place, self._report = _Place(), ReadReport()
        if (state := output.state) is not None:
            self._place = _Place(**state["place"])
            self._report = ReadReport.from_dict(state["report"])
        self._num_tokens = output.num_rows("tokens.bin")
        self._unmarked_bytes = 0
        if not output.num_rows("offsets.npy"):
            output.append("offsets.npy", bytes(8))

    def write(self) -> ReadReport:
        while self._place.file < len(self._files):
            self._write_file(self._files[self._place.file])
        self._tell()
        return self._report

    def _write_file(self, file: DatasetFile) -> None:
        place = self._place
        unreadable = None
        for batch in self._encode(_batches(_rows(file, place.row, self._report.missing))):
            for number, found in batch:
                if number is None:
                    unreadable = str(found)
                    continue
                place.row = number
                if isinstance(found, str):
                    place.skip(found, number)
                else:
                    place.note(found.notes)
                    self._append(found)
            # Who goes on from a mark reads again what failed after it.
            if self._unmarked_bytes >= _MARK_BYTES and not self._report.missing:
                self._unmarked_bytes = 0
                self._output.mark({"place": asdict(place), "report": self._report.to_dict()})
            self._tell()
        if not self._skip_unreadable:
            self._report.require_whole()
        for reason, (first, count) in place.reasons.items():
            self._report.skipped.append(Skipped(file.name, f"{reason}, first at {first}", count))
        for note, count in place.notes.items():
            self._report.notes.append(Skipped(file.name, note, count))
        if unreadable:
            self._report.skipped.append(Skipped(file.name, unreadable))
        elif not place.reasons and self._report.documents == place.documents_before:
            self._report.skipped.append(Skipped(file.name, "empty"))
        self._report.files += self._report.documents > place.documents_before
        self._place = _Place(place.file + 1, documents_before=self._report.documents)

    def _append(self, found: EncodedRow) -> None:
        self._output.append("tokens.bin", found.ids)
        self._output.append(TRAINED_FILE, found.trained)
        if found.rejected_at is not None:
            start = self._num_tokens + found.rejected_at
            self._output.append(REJECTED_FILE, start.to_bytes(8, "little"))
        self._num_tokens += len(found.trained)
        self._output.append("offsets.npy", self._num_tokens.to_bytes(8, "little"))
        self._output.append("hashes.npy", found.hash)
        self._report.documents += 1
        self._report.text_bytes += found.text_bytes
        self._report.cut += found.is_cut
        self._place.file_text_bytes += found.text_bytes
        self._unmarked_bytes += found.text_bytes

    def _tell(self) -> None:
        sizes = [file.size_bytes for file in self._files]
        done = sum(sizes[: self._place.file])
        if self._place.file < len(sizes):
            done += min(self._place.file_text_bytes, sizes[self._place.file])
        self._on_progress(Tokenised(done, sum(sizes), self._num_tokens))


def _rows(file: DatasetFile, done: int, missing: list[Skipped]) -> Iterator[Row]:
    """The rows of a file after number `done`, in order, with those that its reader leaves out. A file
    that cannot be read for a reason outside it is added to `missing`."""
    skipped: list[Row] = []

    def skip(reason: str, number: int) -> None:
        skipped.append(Row(number, None, reason))

    def read() -> Iterator[Row]:
        try:
            reader = ROW_READERS[file.path.suffix.lower()]
            for number, value in read_patiently(reader, file.path, skip):
                yield from skipped
                skipped.clear()
                yield Row(number, value)
            yield from skipped
        except (Unreadable, UnicodeDecodeError, OSError) as error:
            yield from skipped
            reason = reason_of(error)
            if isinstance(error, Passing):
                missing.append(Skipped(file.name, reason))
            yield Row(None, None, reason)

    return (row for row in read() if row.number is None or row.number > done)


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, _BATCH_ROWS)):
        yield batch
