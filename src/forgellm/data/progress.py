"""How far the preparation of a dataset is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Tokenised(NamedTuple):
    """So many bytes of the dataset's files are done, and made so many tokens.

    `done_bytes` and `num_tokens` are 0 while files are compared with the cache.
    """

    done_bytes: int
    total_bytes: int
    num_tokens: int


OnProgress = Callable[[Tokenised], None]
"""Called after each batch; what it raises ends the preparation, which can be continued."""
