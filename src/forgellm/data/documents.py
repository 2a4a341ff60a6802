"""The documents of a dataset folder, read one at a time, with a report of what was left out."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from forgellm.data.readers import READERS
from forgellm.data.reading.patience import PAUSES_SECONDS, read_patiently
from forgellm.data.reading.reader import Passing, Unreadable, passing_reason, reason_of
from forgellm.errors import DataError

_HASHED_AT_ONCE = 1 << 22
MANIFEST_NAME = "preparation.json"
# What systems and programs lay beside files: no part of a dataset, and no loss.
_SYSTEM_NAMES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "__pycache__"}
    | {"$recycle.bin", "system volume information", "lost+found"}
)
_SYSTEM_BEGINNINGS = (".", "~$")  # hidden; and the lock that Word keeps while a file is open
# What ForgeLLM itself lays beside documents, known by its name and its beginning.
_OWN_FILES = {
    "report.json": b'{\n  "forgellm_questions":',
    MANIFEST_NAME: b'{\n  "forgellm_preparation":',
}


class Document(NamedTuple):
    """`source` is the path in the dataset, with `:<line or row>` where a file holds several."""

    source: str
    text: str


class DatasetFile(NamedTuple):
    """A file that a reader exists for. `name` is its POSIX path in the dataset."""

    name: str
    path: Path
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Skipped:
    """A file left out, or `rows` rows of one."""

    source: str
    reason: str
    rows: int | None = None


class Listing(NamedTuple):
    """`missing` are those of `skipped` that could not be looked at for a reason outside them."""

    files: list[DatasetFile]
    skipped: list[Skipped]
    missing: list[Skipped]

    def require_whole(self) -> None:
        """Raises DataError for the first of the `missing`."""
        if self.missing:
            raise missing_error(self.missing[0])

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class DatasetOverview(NamedTuple):
    file_count: int
    total_size_bytes: int


@dataclass
class ReadReport:
    """What became of the files; filled while documents are read.

    Attributes:
        skipped: files and rows that were left out.
        cut: conversations that lost their last turns.
        notes: what of the rows that were used was not, such as columns that no shape has.
        missing: of `skipped`, the files that could not be read for a reason outside them. What was
            made without them is not whole.
    """

    files: int = 0
    documents: int = 0
    text_bytes: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    cut: int = 0
    notes: list[Skipped] = field(default_factory=list)
    missing: list[Skipped] = field(default_factory=list)

    def require_whole(self) -> None:
        """Raises DataError for the first of the `missing`."""
        if self.missing:
            raise missing_error(self.missing[0])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ReadReport:
        skipped = [Skipped(**item) for item in values["skipped"]]
        return cls(
            values["files"],
            values["documents"],
            values["text_bytes"],
            skipped,
            values.get("cut", 0),
            [Skipped(**item) for item in values.get("notes", [])],
            [Skipped(**item) for item in values.get("missing", [])],
        )


def missing_error(item: Skipped) -> DataError:
    return DataError(
        f"{item.source} {item.reason}, at every attempt. The file itself may be whole",
        suggestion="Start again. If it recurs, look at the disk, copy the file anew or take it out of "
        "the dataset; or go on without it, in this run alone: skip_unreadable (--skip-unreadable).",
        details={"file": item.source, "reason": item.reason},
    )


def dataset_files(folder: Path) -> Listing:
    """Files of a dataset sorted by name. Hidden files and folders are no part of a dataset, nor is
    what systems, and ForgeLLM itself, lay beside its documents. What cannot be looked at for a
    reason outside it is tried again."""
    listing = _listed(folder)
    for pause in PAUSES_SECONDS:
        if not listing.missing:
            break
        time.sleep(pause)
        listing = _listed(folder)
    return listing


def _listed(folder: Path) -> Listing:
    files: list[DatasetFile] = []
    skipped: list[Skipped] = []
    missing: list[Skipped] = []
    root = os.path.realpath(folder)

    def closed(error: OSError) -> None:
        shown = _printable(os.path.relpath(error.filename, root))
        if reason := passing_reason(error):
            missing.append(Skipped(shown, reason))
        else:
            skipped.append(Skipped(shown, f"cannot be opened: {error.strerror}"))

    for parent, folders, names in os.walk(root, onerror=closed):
        folders[:] = [name for name in folders if not _is_of_system(name)]
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in [*names, *linked]:
            path = os.path.join(parent, name)
            if _is_of_system(name) or (parent == root and _is_own(path, name)):
                continue
            shown = _printable(os.path.relpath(path, root).replace(os.sep, "/"))
            try:
                entry = _examine(root, path, shown)
            except Passing as error:
                missing.append(Skipped(shown, str(error)))
                continue
            if isinstance(entry, Skipped):
                skipped.append(entry)
            else:
                files.append(entry)
    skipped = sorted([*skipped, *missing], key=lambda item: item.source)
    return Listing(sorted(files), skipped, missing)


def dataset_overview(folder: Path) -> DatasetOverview:
    """Count and size of the readable files, without opening them."""
    files = dataset_files(folder).files
    return DatasetOverview(len(files), sum(file.size_bytes for file in files))


def dataset_fingerprint(folder: Path) -> str:
    """Hex sha256 of names, sizes and contents; the same on every machine and after any copy."""
    return fingerprint_of(dataset_files(folder).files)


def fingerprint_of(files: list[DatasetFile], on_progress: Callable[[], None] = lambda: None) -> str:
    """See `dataset_fingerprint`. `on_progress` is called on the way; it may raise to end it."""
    total = hashlib.sha256()
    for file in files:
        try:
            (content,) = read_patiently(
                lambda path, _: _hash_of(path, on_progress), file.path, lambda *_: None
            )
        except Passing:
            content = f"unread {secrets.token_hex()}"  # nothing is ever taken for the same
        except OSError:
            content = "unreadable"
        total.update(f"{file.name}\0{file.size_bytes}\0{content}\n".encode())
    return total.hexdigest()


def _hash_of(path: Path, on_progress: Callable[[], None]) -> Iterator[str]:
    """One hex sha256, that of the content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(_HASHED_AT_ONCE):
            digest.update(part)
            on_progress()
    yield digest.hexdigest()


def iter_documents(folder: Path, report: ReadReport | None = None) -> Iterator[Document]:
    """Documents in a fixed order, holding one at a time; `report` is filled on the way."""
    listing = dataset_files(folder)
    report = report if report is not None else ReadReport()
    report.skipped.extend(listing.skipped)
    for file in listing.files:
        yield from read_file(file, report)


def read_file(file: DatasetFile, report: ReadReport) -> Iterator[Document]:
    """The documents of one file. What cannot be read is noted in `report`, never raised."""
    skipped_rows: dict[str, tuple[int, int]] = {}  # reason -> (first row, how many)

    def skip(reason: str, number: int) -> None:
        first, count = skipped_rows.get(reason, (number, 0))
        skipped_rows[reason] = (first, count + 1)

    before = report.documents
    unreadable: str | None = None
    reader = READERS[file.path.suffix.lower()]
    try:
        for number, text in read_patiently(reader, file.path, skip):
            if text and not text.isspace():
                report.documents += 1
                report.text_bytes += len(text.encode())
                yield Document(file.name if number is None else f"{file.name}:{number}", text)
            elif number is not None:
                skip("empty", number)
    except Passing as error:
        unreadable = str(error)
        report.missing.append(Skipped(file.name, unreadable))
    except (Unreadable, UnicodeDecodeError, OSError) as error:
        unreadable = reason_of(error)
    for reason, (first, count) in skipped_rows.items():
        report.skipped.append(Skipped(file.name, f"{reason}, first at {first}", count))
    report.files += report.documents > before
    if unreadable is not None:
        report.skipped.append(Skipped(file.name, unreadable))
    elif report.documents == before and not skipped_rows:
        report.skipped.append(Skipped(file.name, "empty"))


def _is_of_system(name: str) -> bool:
    return name.startswith(_SYSTEM_BEGINNINGS) or name.lower() in _SYSTEM_NAMES


def _is_own(path: str, name: str) -> bool:
    if name not in _OWN_FILES:
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(_OWN_FILES[name])) == _OWN_FILES[name]
    except OSError:
        return False


def _examine(root: str, path: str, shown: str) -> DatasetFile | Skipped:
    """Raises Passing."""
    if os.path.islink(path):
        target = os.path.realpath(path)
        if not target.startswith(root + os.sep):
            return Skipped(shown, "link leading outside the dataset")
        if os.path.isdir(target):
            return Skipped(shown, "link to a folder")
    try:
        found = os.stat(path)
    except OSError as error:
        if reason := passing_reason(error):
            raise Passing(reason) from None
        return Skipped(shown, "link leading nowhere")
    if not stat.S_ISREG(found.st_mode):
        return Skipped(shown, "not a regular file")
    if Path(path).suffix.lower() not in READERS:
        return Skipped(shown, "unsupported type")
    return DatasetFile(shown, Path(path), found.st_size, found.st_mtime_ns)


def _printable(name: str) -> str:
    """File names may hold bytes that are not UTF-8; JSON may not. Letters with accents are composed,
    as some systems store names and others do not."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "backslashreplace").decode())
