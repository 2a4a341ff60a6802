"""A batch's rows shared out over threads of this process, for training on a CPU.

An operation on a small model takes less time than cores need to share it: two threads that each take
half of the rows through all of them, on one core each, finish a step sooner than two cores that
divide every operation, and suffer less from other programs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from forgellm.data.batches import Batch

_MOST_THREADS = 4  # more would wait for each other at Python's lock

Found = TypeVar("Found")


class RowThreads:
    def __init__(self, most: int = _MOST_THREADS) -> None:
        self._num_cores = torch.get_num_threads()
        self._most = min(most, self._num_cores)
        self._pool = ThreadPoolExecutor(self._most, "rows")

    def map(self, work: Callable[[Batch], Found], batch: Batch) -> list[Found]:
        """What `work` makes of each part of the batch, in an order that does not depend on time.

        `work` runs in other threads, so it sets torch's modes of gradients and types itself.
        """
        count = min(self._most, len(batch.tokens))
        if count == 1:
            return [work(batch)]

        def share(number: int) -> Found:
            torch.set_num_threads(self._num_cores // count)  # of operations of this thread
            return work(batch.rows(number, count))

        return list(self._pool.map(share, range(count)))
