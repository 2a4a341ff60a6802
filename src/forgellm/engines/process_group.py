"""Processes that train one model together, each on its share of every batch."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

# What a trainer tells the processes that it starts; see `training.processes`.
LEADER_VARIABLE = "FORGELLM_LEADER"
STORE_VARIABLE = "FORGELLM_STORE"
FIRST_MACHINE_VARIABLE = "FORGELLM_FIRST_MACHINE"

_MLX_RANK = "MLX_RANK"


class ProcessGroup(Protocol):
    """Whatever is asked of it, every process must ask, in the same order.

    Attributes:
    rank: this process's number, from 0; process 0 writes the run.
    size: how many there are.
    is_first_here: whether it is the first of its machine.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def is_first_here(self) -> bool: ...

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in one of them."""

    def meet(self) -> None:
        """Wait for all, however long one of them takes."""

    def one_first(self) -> AbstractContextManager[None]:
        """For what is kept on the disk: one process of each machine does it, then the others."""


@dataclass(frozen=True)
class Alone:
    """A process without others."""

    rank: int = 0
    size: int = 1
    is_first_here: bool = True

    def any(self, flag: bool) -> bool:
        return flag

    def meet(self) -> None:
        pass

    def one_first(self) -> AbstractContextManager[None]:
        return nullcontext()


def is_led() -> bool:
    """Whether a trainer started this process, to share a run that the trainer holds."""
    return LEADER_VARIABLE in os.environ


def mlx_rank() -> int | None:
    """This process's number among those of `mlx.launch`, before any library is loaded; None alone."""
    rank = os.environ.get(_MLX_RANK)
    return None if rank is None else int(rank)


def is_of_torchrun() -> bool:
    """Whether torchrun's own command started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and not is_led()
