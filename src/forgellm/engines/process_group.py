"""Processes that train one model together, each on its share of every batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

_RANK_VARIABLE = "MLX_RANK"


class ProcessGroup(Protocol):
    """Attributes:
    rank: this process's number, from 0; process 0 writes the run.
    size: how many there are.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in one of them. Every process must ask, in the same order."""


@dataclass(frozen=True)
class Alone:
    """A process without others."""

    rank: int = 0
    size: int = 1

    def any(self, flag: bool) -> bool:
        return flag


def is_launched() -> bool:
    """Whether `mlx.launch` started this process."""
    return _RANK_VARIABLE in os.environ


def launched_rank() -> int:
    """This process's number among those that were started together, before any library is loaded."""
    return int(os.environ.get(_RANK_VARIABLE, "0"))
