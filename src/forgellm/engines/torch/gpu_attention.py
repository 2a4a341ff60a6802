"""Causal attention inside packed documents on NVIDIA GPUs: flash attention (Dao 2023, arXiv 2307.08691)
of sequences of any lengths, laid end to end, so that no mask and no scores across documents exist.

Letters: B rows, H query heads, K key-value heads, T tokens, D head size.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

varlen_attn: Any = None
with suppress(ImportError):  # torch before 2.10
    from torch.nn.attention.varlen import varlen_attn

_CAPABILITY = (8, 0)  # of the GPUs that the kernels are made for
_MOST = 256  # of head size


def has_flash_attention(query: Tensor, value: Tensor) -> bool:
    """Whether these heads' type and size, on their device, are ones that the kernels take."""
    return (
        varlen_attn is not None
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= _MOST
        and query.device.type == "cuda"
        and _is_recent(query.device)
    )


@functools.cache
def _is_recent(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _CAPABILITY


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    borders: Tensor,
    longest: int,
    window: int | None,
) -> Tensor:
    """query [B, H, T, D]; key, value [B, K, T, D]; borders [n + 1] int32, the documents' ends counted
    through all rows, from 0 on; `longest` of them, in tokens. Returns [B, T, H, D]."""
    found: Tensor = varlen_attn(
        *(x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)),
        borders,
        borders,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
    )
    return found.view(len(query), -1, *found.shape[1:])
