"""Several MLX processes, started by `mlx.launch`: sums over all of them."""

from __future__ import annotations

import functools
import socket
from contextlib import AbstractContextManager, nullcontext

import mlx.core as mx
from mlx.nn.utils import average_gradients
from mlx.utils import tree_flatten

from forgellm.engines.base import ProcessMetrics
from forgellm.engines.mlx.tensor_files import Tensors

_NAME_BYTES = 64


class MlxGroup:
    """See `engines.process_group.ProcessGroup`. Alone, nothing is sent and nothing changes."""

    def __init__(self) -> None:
        self._group = mx.distributed.init()

    @property
    def rank(self) -> int:
        return int(self._group.rank())

    @property
    def size(self) -> int:
        return int(self._group.size())

    @property
    def is_first_here(self) -> bool:
        # A recipe says how many torch processes share a machine, not how many of mlx.launch do: the
        # estimate is of one process, so each sees to its own.
        return True

    def any(self, flag: bool) -> bool:
        # On the CPU's stream, so that the question does not wait for the GPU's step.
        return flag if self.size == 1 else float(self.sum(mx.array(float(flag)))) > 0

    def meet(self) -> None:
        self.any(False)

    def one_first(self) -> AbstractContextManager[None]:
        # Mostly each has a machine of its own. Where not, those that come to a store or a model that
        # another is making wait for its lock, and find it made.
        return nullcontext()

    def gather(self, num_tokens: int, peak_memory_bytes: int) -> tuple[ProcessMetrics, ...]:
        """What each process has done, as it says."""
        if self.size == 1:
            return (ProcessMetrics(num_tokens, peak_memory_bytes),)
        host = socket.gethostname().encode()[:_NAME_BYTES].ljust(_NAME_BYTES)
        own = mx.array([[num_tokens, peak_memory_bytes, *host]], mx.int64)
        found = mx.distributed.all_gather(own, group=self._group, stream=mx.cpu)
        return tuple(
            ProcessMetrics(row[0], row[1], bytes(row[2:]).decode("utf-8", "replace").strip())
            for row in found.tolist()
        )

    def sum(self, value: mx.array) -> mx.array:
        """Over all processes, elementwise."""
        if self.size == 1:
            return value
        return mx.distributed.all_sum(value, group=self._group, stream=mx.cpu)

    def sum_gradients(self, grads: Tensors) -> Tensors:
        """Over all processes; small gradients travel together."""
        if self.size == 1:
            return grads
        averaged = tree_flatten(average_gradients(grads, self._group))  # it nests dotted names
        return {name: grad * self.size for name, grad in averaged}


@functools.cache
def process_group() -> MlxGroup:
    """The one this process belongs to."""
    return MlxGroup()
