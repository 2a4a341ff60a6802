"""What was read from files, kept until they change. The files stay the truth: each look asks them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

# A file changed twice within one tick of the file system's clock may show the same date for both.
_SETTLED_NS = 1_000_000_000


Signature = tuple[int, int, int]
"""Inode, size and date in nanoseconds: another one after nearly every change of a file."""


def signature(path: str) -> Signature | None:
    """None where there is no file. Costs no reading."""
    try:
        return signature_of(os.stat(path))
    except OSError:
        return None


def signature_of(found: os.stat_result) -> Signature:
    return found.st_ino, found.st_size, found.st_mtime_ns


def is_settled(seen: Signature) -> bool:
    """Whether any change from now on is sure to show another date."""
    return time.time_ns() - seen[2] > _SETTLED_NS


class FileMemory(Generic[T]):
    """`read` of each path, called again only when the file there has changed.

    For several threads: at worst two of them read the same file.
    """

    def __init__(self, read: Callable[[str], T]) -> None:
        self._read = read
        self._known: dict[str, tuple[Signature, T]] = {}

    def get(self, path: str) -> T | None:
        """None where there is no file; whatever `read` raises."""
        seen = signature(path)
        if seen is None:
            self._known.pop(path, None)
            return None
        known = self._known.get(path)
        if known is not None and known[0] == seen:
            return known[1]
        settled = is_settled(seen)  # before the reading, which takes its time
        value = self._read(path)
        if settled:
            self._known[path] = seen, value
        return value

    def keep(self, paths: Iterable[str]) -> None:
        """Forget all other paths."""
        kept = set(paths)
        for path in list(self._known):
            if path not in kept:
                self._known.pop(path, None)
