"""Attention over packed documents that keeps no `[T, T]` probabilities for the backward pass.

While gradients are traced, MLX computes attention from plain operations and keeps every layer's
probabilities, [B, H, T, T]. Here a block of queries meets the keys up to its own end, and its
probabilities are computed again in the backward pass (Dao et al. 2022, arXiv 2205.14135, section
3.1), so that one block's are held at a time, and half of what causality masks is never computed.

mlx-lm's models call a function that they hold in their module. It is replaced there by one that
differs for a `PackedCache` alone: for whoever else uses the model nothing changes.

Letters: B rows, H query heads, K key-value heads, T tokens, D head size.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention

from forgellm.engines.mlx.packing import PackedCache

BLOCK = 512
_NAME = "scaled_dot_product_attention"


def use_blocks(model: nn.Module) -> None:
    """Let the architecture of `model` attend to packed batches block by block."""
    for name in {type(module).__module__ for module in model.modules()}:
        if getattr(sys.modules[name], _NAME, None) is scaled_dot_product_attention:
            setattr(sys.modules[name], _NAME, _attention)


def _attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: mx.array | None = None,
) -> mx.array:
    """queries [B, H, T, D]; keys, values [B, K, T, D]; mask [B, 1, T, T] bool -> [B, H, T, D]."""
    if not isinstance(cache, PackedCache) or sinks is not None:
        return scaled_dot_product_attention(queries, keys, values, cache, scale, mask, sinks)

    def attend(q: mx.array, k: mx.array, v: mx.array, allowed: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=allowed)

    checkpointed = mx.checkpoint(attend)
    blocks = []
    for start in range(0, queries.shape[2], BLOCK):
        stop = min(start + BLOCK, queries.shape[2])
        blocks.append(
            checkpointed(
                queries[:, :, start:stop],
                keys[:, :, :stop],
                values[:, :, :stop],
                mask[:, :, start:stop, :stop],
            )
        )
    return mx.concatenate(blocks, axis=2)
