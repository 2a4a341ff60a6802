"""The caches of answers that run and that have ended, for prompts that begin as they did.

The next turn of a chat repeats all that was said before, and chats share what stands before their
first turn; only what is new needs computing. A cache whose answer has ended is handed over whole to
a prompt that goes on from its end; of all others the beginning is copied, also while they grow.
"""

from __future__ import annotations

from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from forgellm.engines.prefix_match import num_common

_MAX_ENDED = 16


class Cache(Protocol):
    """Keys and values of the tokens `ids` [n] int32."""

    @property
    def ids(self) -> NDArray[np.int32]: ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def can_be_cut(self) -> bool: ...

    def __len__(self) -> int: ...

    def beginning(self, num_tokens: int) -> Self: ...


Kept = TypeVar("Kept", bound=Cache)


class Prefixes(Generic[Kept]):
    """Ended caches go, the least recently used first, where all together take over `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._running: list[Kept] = []
        self._ended: list[Kept] = []  # the last used is the last

    @property
    def num_bytes(self) -> int:
        return sum(cache.num_bytes for cache in (*self._running, *self._ended))

    def begin(self, prompt_ids: list[int], empty: Kept) -> Kept:
        """The caller's own cache for a prompt: of as much of its beginning as is known, but never of
        its last token, which must be computed to go on from it; `empty` if nothing is."""
        prompt = np.array(prompt_ids[:-1], dtype=np.int32)
        best = max((*self._ended, *self._running), key=lambda c: _usable(c, prompt), default=empty)
        num_known = _usable(best, prompt)
        if not num_known:
            found = empty
        elif num_known == len(best) and best in self._ended:
            self._ended.remove(best)
            found = best
        else:
            if best in self._ended:
                self._ended.append(self._ended.pop(self._ended.index(best)))
            found = best.beginning(num_known)
        self._running.append(found)
        self._make_room()
        return found

    def end(self, cache: Kept) -> None:
        """Keep a cache that is not written to any more."""
        self._running.remove(cache)
        if len(cache):
            self._ended = [old for old in self._ended if not _covers(cache, old)]
            self._ended.append(cache)
        del self._ended[:-_MAX_ENDED]
        self._make_room()

    def clear(self) -> None:
        self._running.clear()
        self._ended.clear()

    def _make_room(self) -> None:
        while self._ended and self.num_bytes > self._max_bytes:
            del self._ended[0]


def _usable(cache: Cache, prompt: NDArray[np.int32]) -> int:
    """How many of the prompt's first tokens can be taken from a cache."""
    common = num_common(cache.ids, prompt)
    return common if common == len(cache) or cache.can_be_cut else 0


def _covers(new: Cache, old: Cache) -> bool:
    """Whether `old` gives nothing that `new` does not."""
    is_beginning = num_common(new.ids, old.ids) == len(old)
    return is_beginning and (new.can_be_cut or len(new) == len(old))
