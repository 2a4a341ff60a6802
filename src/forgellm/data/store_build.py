"""A new entry of the token cache: by one builder at a time, continued where a killed one was."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from forgellm.atomic import sync, sync_tree
from forgellm.data.documents import ReadReport
from forgellm.data.growing_files import GrowingFiles, can_continue
from forgellm.data.token_cache import WORK_PREFIX, make_room
from forgellm.data.token_store import TokenStore, file_identity, open_store
from forgellm.errors import DataError, DiskFull

Columns = Mapping[str, tuple[str, tuple[int, ...]]]
"""Names of a store's files, each with dtype and shape of a row; see `GrowingFiles`."""

_PAUSE_SECONDS = 0.1


def build_store(
    target: Path,
    fingerprint: str,
    columns: Columns,
    write: Callable[[GrowingFiles], ReadReport],
    is_unchanged: Callable[[], bool],
    on_wait: Callable[[], None],
) -> TokenStore:
    """A new cache entry, to whose files `write` appends.

    What `write` has marked is kept when it is stopped, and continued by the next call. Where another
    process builds the same entry, this one waits, calls `on_wait` meanwhile, and takes the result.
    What lacks files that may be readable at another time becomes an entry of another name, which
    only who has that name opens again.

    Raises DataError if the dataset changes meanwhile, DiskFull.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / (WORK_PREFIX + target.name)
    with _only_builder(work, on_wait):
        is_worth_keeping = True
        try:
            if (store := open_store(target.parent, target.name)) is not None:
                return store
            with GrowingFiles(work, columns) as files:
                report = write(files)
                files.finish()
            if not is_unchanged():
                raise DataError(
                    "The dataset changed while it was read",
                    suggestion="Start again when its files are complete.",
                )
            if report.missing:  # not under the name by which the whole is looked for
                target = target.with_name(f"{target.name}-{secrets.token_hex(4)}")
            store = _install(work, target, fingerprint, report)
            make_room(target.parent, keep=target.name)
            return store
        except DataError:
            is_worth_keeping = False
            raise
        except (DiskFull, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            is_worth_keeping = False
            raise DiskFull(
                "The disk is full: the tokenised dataset could not be written",
                suggestion="Free disk space, then start again.",
            ) from None
        finally:
            if not (is_worth_keeping and can_continue(work)):
                shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _only_builder(work: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the folder `work`; whoever held it and was killed holds it no more."""
    while (descriptor := _take(work)) is None:
        on_wait()
        time.sleep(_PAUSE_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)


def _take(work: Path) -> int | None:
    """An open file that holds the lock of `work`; None if another has it."""
    try:
        work.mkdir(exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY)
    except (FileNotFoundError, FileExistsError):
        return None  # renamed or removed between two steps
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(work)):
            return descriptor
    os.close(descriptor)
    return None


def _install(work: Path, target: Path, fingerprint: str, report: ReadReport) -> TokenStore:
    """Make the finished files in `work` the entry `target`."""
    meta = {
        "fingerprint": fingerprint,
        "report": report.to_dict(),
        "files": {path.name: file_identity(path) for path in sorted(work.iterdir())},
    }
    (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    store = open_store(work.parent, work.name)  # stays mapped whatever becomes of the entry
    if store is None:
        raise DataError(
            "The tokenised dataset could not be read back",
            suggestion="Start again; if it recurs, check the disk.",
        )
    sync_tree(work)
    shutil.rmtree(target, ignore_errors=True)  # what lay there was damaged
    work.rename(target)
    sync(target.parent)
    return replace(store, key=target.name)
