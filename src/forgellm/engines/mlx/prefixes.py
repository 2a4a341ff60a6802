"""Key-value caches of finished answers, for prompts that begin as they did.

The next turn of a chat repeats all that was said before; with the cache of the last turn only what
is new needs computing. mlx-lm's own store is not used: it searches in quadratic time where two
long texts part, and has no answer for a prompt that it holds whole.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache
from numpy.typing import NDArray

from forgellm.engines.prefix_match import num_common

MAX_ENTRIES = 16


@dataclass(frozen=True, eq=False)
class _Entry:
    """`caches`, one for each layer, hold exactly `tokens` [n] int32."""

    tokens: NDArray[np.int32]
    caches: list[Any]
    num_bytes: int

    def usable(self, prompt: NDArray[np.int32]) -> int:
        """How many of the prompt's first tokens can be taken from here.

        Caches that forget, such as those of sliding windows, cannot be cut back: all or nothing.
        """
        common = num_common(self.tokens, prompt)
        return common if common == len(self.tokens) or self.is_trimmable else 0

    @property
    def is_trimmable(self) -> bool:
        return bool(can_trim_prompt_cache(self.caches))


class PrefixStore:
    """Holds at most `max_bytes`; the least recently used go first."""

    def __init__(self, max_bytes: int, max_entries: int = MAX_ENTRIES) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._entries: list[_Entry] = []  # the last used is the last

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self._entries)

    def find(self, prompt_ids: list[int]) -> tuple[list[Any] | None, int]:
        """Caches that hold the first n tokens of a prompt, and n: less than all of them, since the
        last one must be computed to go on from it. The caches are the caller's own."""
        prompt = np.array(prompt_ids[:-1], dtype=np.int32)
        best = max(self._entries, key=lambda entry: entry.usable(prompt), default=None)
        num_known = best.usable(prompt) if best else 0
        if best is None or not num_known:
            return None, 0
        self._entries.remove(best)
        self._entries.append(best)
        caches = copy.deepcopy(best.caches)  # arrays are shared until one side is written to
        trim_prompt_cache(caches, len(best.tokens) - num_known)
        return caches, num_known

    def add(self, token_ids: list[int], caches: list[Any], *, active_bytes: int = 0) -> None:
        """`caches` hold `token_ids`; `active_bytes` of the room is taken by answers that run."""
        mx.eval([cache.state for cache in caches])
        tokens = np.array(token_ids, dtype=np.int32)
        entry = _Entry(tokens, caches, sum(cache.nbytes for cache in caches))
        self._entries = [old for old in self._entries if not _covers(entry, old)]
        self._entries.append(entry)
        del self._entries[: -self._max_entries]
        self.make_room(active_bytes)

    def make_room(self, num_bytes: int) -> None:
        """Forget as many as it takes so that these bytes fit beside the rest."""
        while self._entries and self.num_bytes + num_bytes > self._max_bytes:
            del self._entries[0]

    def clear(self) -> None:
        self._entries.clear()


def _covers(new: _Entry, old: _Entry) -> bool:
    """Whether `old` gives nothing that `new` does not."""
    is_beginning = num_common(new.tokens, old.tokens) == len(old.tokens)
    return is_beginning and (new.is_trimmable or len(new.tokens) == len(old.tokens))
