"""How much the cache of tokenised datasets may hold: what was not used for longest goes first."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

WORK_PREFIX = ".building-"

MAX_BYTES = 20_000_000_000
MAX_SHARE_OF_DISK = 0.1
_ABANDONED_SECONDS = 7 * 24 * 3600
_IN_USE_SECONDS = 3600


def touch_entry(folder: Path) -> None:
    """Note that the entry is used now; its folder's date is that of its last use."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def make_room(cache: Path, keep: str) -> None:
    """Remove what killed builders left a week ago, and entries beyond the bound on bytes.

    `keep` and what was used within the hour stay. A run that is resumed makes a removed entry anew.
    """
    for work in cache.glob(".*"):
        if work.name != WORK_PREFIX + keep and _age_seconds(work) > _ABANDONED_SECONDS:
            _remove_unless_held(work)
    with contextlib.suppress(OSError):
        bound = min(MAX_BYTES, int(MAX_SHARE_OF_DISK * shutil.disk_usage(cache).total))
        total = 0
        for entry in _latest_first(cache):
            total += sum(path.stat().st_size for path in entry.iterdir())
            if total > bound and entry.name != keep and _age_seconds(entry) > _IN_USE_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)


def _latest_first(cache: Path) -> Iterator[Path]:
    entries = [path for path in cache.iterdir() if not path.name.startswith(".")]
    return iter(sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True))


def _age_seconds(folder: Path) -> float:
    """Since the folder or a file in it was written."""
    try:
        return time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return 0.0


def _remove_unless_held(work: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(work, ignore_errors=True)
        finally:
            os.close(descriptor)
