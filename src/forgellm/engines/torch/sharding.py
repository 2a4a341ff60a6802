"""A model whose weights are shared out over processes (FSDP2: Zhao et al. 2023, arXiv 2304.11277;
per parameter, as `torch.distributed.fsdp.fully_shard` does it).

Each process holds a slice of every weight, gradient and moment; a block's weights are whole for as
long as it computes. A sharded value is a DTensor, cut along its first dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from forgellm import hardware
from forgellm.catalog.safety import weight_files
from forgellm.data.batches import Batch
from forgellm.engines.torch.packing import decoder_of
from forgellm.engines.torch.process_group import Group

_LOADED_TO_STORED = 2  # bfloat16 on disk becomes float32 where all weights are trained


class Sharded(nn.Module):
    """A model and what is computed with it, as the one module that FSDP sees around all weights."""

    def __init__(self, model: nn.Module, sums: Callable[[Batch], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._sums = sums

    def forward(self, batch: Batch) -> Tensor:
        return self._sums(batch).clone()  # FSDP hooks into what is no view

    @contextmanager
    def answering(self) -> Iterator[None]:
        """The weights outside the blocks are whole for a while, for calls past this module."""
        root: Any = self
        root.unshard()
        try:
            yield
        finally:
            root.reshard()


def shard(
    model: Any,
    sums: Callable[[Batch], Tensor],
    device: torch.device,
    *,
    gather_dtype: torch.dtype | None,
    cpu_offload: bool,
) -> Sharded:
    """Share out the weights of `model` over all processes; `sums` is called by the module returned.

    Weights are gathered in `gather_dtype`, or as they are; gradients are summed in float32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    offload = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()
    policy = MixedPrecisionPolicy(param_dtype=gather_dtype, reduce_dtype=torch.float32)
    root = Sharded(model, sums)
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload)
    fully_shard(root, mesh=mesh, mp_policy=policy, offload_policy=offload)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # The loss is a sum over all processes, and so is its gradient.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root


def one_copy_at_a_time(group: Group, model_path: Path) -> AbstractContextManager[None]:
    """Where a whole copy for each process of this machine would take much of its memory: they load and
    shard one after the other, all of which takes longer."""
    size = sum(file.stat().st_size for file in weight_files(model_path))
    copies = group.local_size * size * _LOADED_TO_STORED
    is_little = copies < hardware.memory_available_bytes() / 4
    return group.in_turn() if group.any(not is_little) else nullcontext()


def _blocks(model: Any) -> list[nn.Module]:
    """The decoder's blocks; where they are kept differs, that they are a list does not."""
    lists = [m for m in decoder_of(model).children() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len, default=()))


def whole(tensor: Tensor) -> Tensor:
    """The value of a sharded tensor in every process, or of another as it is. All must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(own: Tensor, value: Tensor) -> Tensor:
    """`value`, which every process has, shared out as `own` is."""
    value = value.to(own.device, own.dtype)
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)


@torch.no_grad()
def fill(own: Tensor, value: Tensor) -> None:
    """Give `own`, sharded or not, the values of `value`, which every process has."""
    value = like(own, value)
    if isinstance(own, DTensor) and isinstance(value, DTensor):
        own.to_local().copy_(value.to_local())
    else:
        own.copy_(value)


def num_local(tensor: Tensor) -> int:
    """How many of a tensor's numbers this process holds."""
    return int((tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel())
