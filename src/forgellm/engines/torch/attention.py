"""Causal attention inside packed documents, registered with transformers as `"forgellm"`.

Rows hold several documents; `segment_ids` tell them apart. Scores are computed in blocks of
queries, and a block only meets the keys between the start of its first token's document and its
own end, so neither masked blocks nor `[T, T]` matrices are formed. The backward pass forms the
probabilities again from the saved log-sum-exp (Dao et al. 2022, arXiv 2205.14135, section 3.1).

Exponentials are to base 2: on CPUs `exp` of a masked score takes a path 30 times slower.

Letters: B rows, H query heads, K key-value heads, G = H / K, T tokens, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "forgellm"
BLOCK = 256
_MASKED = -1e30
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Block:
    """One row's queries `q0:q1` and the keys `k0:q1` that they may meet; mask [q1-q0, q1-k0]."""

    row: int
    q0: int
    q1: int
    k0: int
    mask: Tensor


@dataclass(frozen=True)
class PackedLayout:
    """What attends to what in a batch: made once, used by every layer."""

    segment_ids: Tensor
    blocks: dict[int | None, list[Block]]

    def blocks_for(self, window: int | None) -> list[Block]:
        if window not in self.blocks:
            self.blocks[window] = _blocks(self.segment_ids, window)
        return self.blocks[window]

    def dense_mask(self, window: int | None) -> Tensor:
        """[B, 1, T, T] bool, true where a query may attend to a key."""
        ids = self.segment_ids
        length = ids.shape[1]
        allowed = ids[:, :, None] == ids[:, None, :]
        distance = _distance(length, length, 0, ids.device)
        allowed = allowed & (distance >= 0)
        if window is not None:
            allowed = allowed & (distance < window)
        return allowed[:, None]


def packed_layout(segment_ids: Tensor) -> PackedLayout:
    """`segment_ids` [B, T] int, non-decreasing runs; padding is a segment of its own."""
    return PackedLayout(segment_ids, {})


def _distance(num_queries: int, num_keys: int, offset: int, device: torch.device) -> Tensor:
    """[Q, K] query position minus key position, the first query standing at `offset`."""
    queries = torch.arange(num_queries, device=device)[:, None] + offset
    return queries - torch.arange(num_keys, device=device)[None, :]


def _blocks(segment_ids: Tensor, window: int | None) -> list[Block]:
    blocks = []
    length = segment_ids.shape[1]
    for row, ids in enumerate(segment_ids):
        for q0 in range(0, length, BLOCK):
            q1 = min(q0 + BLOCK, length)
            k0 = int((ids == ids[q0]).nonzero()[0])
            if window is not None:
                k0 = max(k0, q0 - window + 1)
            distance = _distance(q1 - q0, q1 - k0, q0 - k0, ids.device)
            forbidden = (ids[q0:q1, None] != ids[None, k0:q1]) | (distance < 0)
            if window is not None:
                forbidden |= distance >= window
            mask = torch.zeros(forbidden.shape, device=ids.device).masked_fill_(forbidden, _MASKED)
            blocks.append(Block(row, q0, q1, k0, mask))
    return blocks


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, blocks: list[Block]
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T * scale + mask) v, block by block: [B, H, T, D], laid out as [B, T, H, D],
    and the log2 of each query's sum of exponentials [B, H, T] in float32."""
    out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    for b in blocks:
        scores = _scores(q, k, b, scale)
        top = scores.amax(dim=-1, keepdim=True)
        probs = scores.sub_(top).exp2_()
        total = probs.sum(dim=-1, keepdim=True)
        values = (probs.to(q.dtype) @ v[b.row, :, b.k0 : b.q1]).div_(total)
        out[b.row, :, b.q0 : b.q1] = _ungroup(values, q.shape[1])
        lse[b.row, :, b.q0 : b.q1] = _ungroup(top.add_(total.log2_()), q.shape[1])[..., 0]
    return out, lse


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    blocks: list[Block],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of `out`; the rest as `attention_forward` had and gave it."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    delta = (grad * out).sum(-1, dtype=torch.float32)
    heads = k.shape[1]
    for b in blocks:
        rows, keys = slice(b.q0, b.q1), slice(b.k0, b.q1)
        probs = _scores(q, k, b, scale)
        probs = probs.sub_(_group(lse[b.row, :, rows, None], heads)).exp2_()
        g = _group(grad[b.row, :, rows], heads)
        d_scores = (g @ v[b.row, :, keys].mT).float()
        d_scores.sub_(_group(delta[b.row, :, rows, None], heads)).mul_(probs).mul_(scale)
        d_scores, probs = d_scores.to(q.dtype), probs.to(q.dtype)
        dv[b.row, :, keys] += probs.mT @ g
        dq[b.row, :, rows] = _ungroup(d_scores @ k[b.row, :, keys], q.shape[1])
        dk[b.row, :, keys] += d_scores.mT @ _group(q[b.row, :, rows], heads)
    return dq, dk, dv


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, blocks: list[Block]
    ) -> Tensor:
        out, lse = attention_forward(q, k, v, scale, blocks)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale, ctx.blocks = scale, blocks
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        gradients = attention_backward(grad, q, k, v, out, lse, ctx.scale, ctx.blocks)
        return *gradients, None, None


def _group(x: Tensor, num_kv_heads: int) -> Tensor:
    """[H, Q, D] -> [K, G*Q, D]: query heads that share a key head become one matrix."""
    return x.reshape(num_kv_heads, -1, x.shape[-1])


def _ungroup(x: Tensor, num_heads: int) -> Tensor:
    """[K, G*Q, D] -> [H, Q, D]."""
    return x.reshape(num_heads, -1, x.shape[-1])


def _scores(q: Tensor, k: Tensor, b: Block, scale: float) -> Tensor:
    """[K, G*Q, keys] float32 masked scores of one block, times log2(e)."""
    queries = _group(q[b.row, :, b.q0 : b.q1], k.shape[1])
    scores = (queries @ k[b.row, :, b.k0 : b.q1].mT).float().mul_(scale * _LOG2_E)
    num_queries = b.q1 - b.q0
    by_query = scores.view(scores.shape[0], -1, num_queries, scores.shape[-1])
    by_query.add_(b.mask)
    return scores


_block_attention: Callable[..., Tensor] = _BlockAttention.apply


def forgellm_attention(  # noqa: PLR0913 (transformers gives the signature)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each attention layer.

    query [B, H, T, D]; key, value [B, K, S, D] with S >= T when a cache is in use. Returns
    [B, T, H, D]. Without `packed`, plain causal attention aligned to the end of the keys.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves them in float32
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if softcap is not None:
        out = _softcapped(query, key, value, scale, softcap, packed, sliding_window)
    elif packed is not None and _uses_blocks(query):
        blocks = packed.blocks_for(sliding_window)
        out = _block_attention(query, key, value, scale, blocks)
    else:
        mask = _mask(query, key, packed, sliding_window)
        causal = mask is None and query.shape[2] > 1
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True
        )
    return out.transpose(1, 2).contiguous(), None


def _uses_blocks(query: Tensor) -> bool:
    return query.device.type == "cpu"  # GPUs have fused kernels that take a mask


def _mask(
    query: Tensor, key: Tensor, packed: PackedLayout | None, window: int | None
) -> Tensor | None:
    """Bool mask for the dense kernels, or None where plain causal masking says the same."""
    if packed is not None:
        return packed.dense_mask(window)
    num_queries, num_keys = query.shape[2], key.shape[2]
    if num_queries in (1, num_keys) and (window is None or num_keys <= window):
        return None
    distance = _distance(num_queries, num_keys, num_keys - num_queries, query.device)
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)


def _softcapped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    softcap: float,
    packed: PackedLayout | None,
    window: int | None,
) -> Tensor:
    """Gemma 2's tanh-capped scores (arXiv 2408.00118), which the fused kernels lack."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.tanh((query @ key.mT).float() * (scale / softcap)) * softcap
    mask = _mask(query, key, packed, window)
    if mask is None:
        mask = _distance(query.shape[2], key.shape[2], key.shape[2] - query.shape[2], query.device)
        mask = mask >= 0
    scores = scores.masked_fill(~mask, _MASKED)
    return scores.softmax(-1).to(query.dtype) @ value


AttentionInterface.register(NAME, forgellm_attention)
