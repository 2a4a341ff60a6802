"""Files and folders that are either there and whole, or not there: after a crash, on a full disk, after power loss."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import orjson

from forgellm.errors import DiskFull, TrainingFailed

_UNFINISHED = ".unfinished-"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PROBLEMS = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EIO: "the disk reports an input/output error",
    errno.ENOENT: "the run folder has vanished",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files",
}


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn an OSError met while writing `what` into DiskFull or TrainingFailed."""
    try:
        yield
    except OSError as error:
        raise storage_error(what, error) from error


def storage_error(what: str, error: Exception) -> TrainingFailed:
    """The error to raise for a failed write of `what`.

    safetensors wraps the system's error in a class of its own, with its number in the text.
    """
    number = error.errno if isinstance(error, OSError) else _number_in(str(error))
    details = {"what": what, "problem": errno.errorcode.get(number or 0, type(error).__name__)}
    if number in _FULL:
        return DiskFull(f"The disk is full: {what} could not be written", details=details)
    problem = _PROBLEMS.get(number or 0, "the write failed")
    return TrainingFailed(
        f"{what} could not be written: {problem}",
        suggestion="Check the disk and its permissions, then resume the run.",
        details=details,
    )


def _number_in(text: str) -> int | None:
    found = re.search(r"\(os error (\d+)\)", text)
    return int(found[1]) if found else None


def write_json(path: Path, payload: dict[str, Any], *, durable: bool = True) -> None:
    """Replace `path` by `payload` so that readers see the old or the new text, never a part.

    Each file has one writer at a time, so its temporary file has a fixed name and a crash leaves
    at most one behind. With `durable` it is on the disk when this returns. Raises DiskFull or
    TrainingFailed.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    with storage_errors(path.name):
        try:
            temporary.write_bytes(orjson.dumps(payload, option=orjson.OPT_INDENT_2))
            if durable:
                sync(temporary)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


def overwrite_json(path: Path, payload: dict[str, Any]) -> None:
    """Write over `path` within the room it already has: the last resort on a full disk.

    A reader may for an instant see a mixture. Raises DiskFull where the room does not do.
    """
    text = orjson.dumps(payload)
    with storage_errors(path.name), open(path, "r+b", buffering=0) as file:
        if len(text) > os.fstat(file.fileno()).st_blocks * 512:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.write(text)
        file.truncate()


def read_json(path: Path | str) -> dict[str, Any] | None:
    """The object in `path`, or None where there is none that can be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            payload = orjson.loads(file.read())
    except (OSError, ValueError):
        return None
    return payload if isinstance(payload, dict) else None


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's list of names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` for every file and folder below `folder`, and `folder` itself."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def remove_folder(folder: Path, what: str) -> int:
    """Delete a folder for good; the bytes of its files, links not followed.

    Raises DiskFull, TrainingFailed.
    """
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    with storage_errors(what):
        # One rename takes the folder away at once; deleting large files takes a while.
        grave = Path(mkdtemp(prefix=".removed-", dir=folder.parent))
        folder.rename(grave / folder.name)
        shutil.rmtree(grave)
    return size


@contextmanager
def whole_folder(target: Path, what: str) -> Iterator[Path]:
    """A folder to fill, which becomes `target` in one rename when the block ends well.

    The caller holds the lock on making such folders beside `target`, so what an earlier process
    left half-made can go. Raises DiskFull, TrainingFailed.
    """
    with storage_errors(what):
        for leftover in target.parent.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        with TemporaryDirectory(prefix=_UNFINISHED, dir=target.parent) as staging:
            folder = Path(staging) / target.name
            folder.mkdir()
            yield folder
            sync_tree(folder)
            folder.rename(target)
            sync(target.parent)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Wait for, then hold, the exclusive lock on `path`, which is created where absent."""
    with storage_errors(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
