"""Reading again what failed for a reason outside the file: a disk's moment, a reader that was ended.

What such a failure leaves out is missing by chance. It must neither pass for a fault of the file nor
be kept in a cache that later runs take for whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from forgellm.data.reading.reader import Passing, SkipRow, Unreadable, passing_reason

PAUSES_SECONDS = (0.2, 1.0)
"""Before each further attempt."""

T = TypeVar("T")
Attempt = Callable[[SkipRow], Iterator[T]]
"""Reads a file from its beginning: yields its documents or rows, and calls `SkipRow` for those left out."""


class ReaderFailed(Exception):
    """The process of a reader ended by its own doing: it crashed, or reached a limit. If it does so
    twice, the file is the cause; the message is the reason."""


def read_patiently(
    reader: Callable[[Path, SkipRow], Iterator[T]], path: Path, skip: SkipRow
) -> Iterator[T]:
    """What `reader` yields of `path`, begun again after a passing failure; what was given out before
    is passed over. Raises what `reader` raises, and Passing where it failed to the last."""
    return attempted([partial(reader, path)] * (len(PAUSES_SECONDS) + 1), path, skip)


def attempted(attempts: Sequence[Attempt[T]], path: Path, skip: SkipRow) -> Iterator[T]:
    """What the first attempt yields that ends well; see `read_patiently`. Raises Unreadable after the
    second ReaderFailed."""
    given = told = failures = 0
    for attempt, read in enumerate(attempts):
        said = 0

        def skip_once(reason: str, number: int) -> None:
            nonlocal told, said
            said += 1
            if said > told:
                told = said
                skip(reason, number)

        try:
            for number, item in enumerate(read(skip_once), 1):
                if number > given:
                    given = number
                    yield item
            return
        except ReaderFailed as failed:
            failures += 1
            if failures == 2 or attempt + 1 == len(attempts):
                raise Unreadable(str(failed)) from None
        except (Unreadable, UnicodeDecodeError, OSError) as error:
            failure = _as_passing(error, path)
            if failure.is_final:
                raise failure from None
            if attempt + 1 == len(attempts):
                failure.is_final = True
                raise failure from None
        time.sleep(PAUSES_SECONDS[min(attempt, len(PAUSES_SECONDS) - 1)])


def _as_passing(error: Exception, path: Path) -> Passing:
    """Raises `error` itself where it is the file's."""
    if isinstance(error, Passing):
        return error
    if isinstance(error, OSError) and (reason := passing_reason(error)):
        return Passing(reason)
    if isinstance(error, Unreadable):
        # A library that opens files by itself may call a file broken that only could not be read.
        try:
            read_through(path)
        except OSError as fault:
            if reason := passing_reason(fault):
                return Passing(reason)
    raise error


def read_through(path: Path) -> None:
    """Raises OSError if a part of the file cannot be had. What is read next comes from memory."""
    with path.open("rb") as file:
        while file.read(1 << 22):
            pass
