"""Reading again what failed for a reason outside the file: a disk's moment, a reader that was ended.

What such a failure leaves out is missing by chance. It must neither pass for a fault of the file nor
be kept in a cache that later runs take for whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from forgellm.data.reading.reader import Passing, SkipRow, Unreadable, passing_reason

PAUSES_SECONDS = (0.2, 1.0)
"""Before each further attempt."""

T = TypeVar("T")


def read_patiently(
    reader: Callable[[Path, SkipRow], Iterator[T]], path: Path, skip: SkipRow
) -> Iterator[T]:
    """What `reader` yields of `path`, begun again after a passing failure; what was given out before
    is passed over. Raises what `reader` raises, and Passing where it failed to the last."""
    given = told = 0
    for attempt in range(len(PAUSES_SECONDS) + 1):
        said: list[tuple[str, int]] = []

        def skip_once(reason: str, number: int, said: list[tuple[str, int]] = said) -> None:
            nonlocal told
            said.append((reason, number))
            if len(said) > told:
                told = len(said)
                skip(reason, number)

        try:
            for number, item in enumerate(reader(path, skip_once), 1):
                if number > given:
                    given = number
                    yield item
            return
        except (Unreadable, UnicodeDecodeError, OSError, Passing) as error:
            failure = _as_passing(error, path)
        if attempt == len(PAUSES_SECONDS):
            raise failure
        time.sleep(PAUSES_SECONDS[attempt])


def _as_passing(error: Exception, path: Path) -> Passing:
    """Raises `error` itself where it is the file's."""
    if isinstance(error, Passing):
        return error
    if isinstance(error, OSError) and (reason := passing_reason(error)):
        return Passing(reason)
    if isinstance(error, Unreadable):
        # A library that opens files by itself may call a file broken that only could not be read.
        try:
            with path.open("rb") as file:
                while file.read(1 << 22):
                    pass
        except OSError as fault:
            if reason := passing_reason(fault):
                return Passing(reason)
    raise error
