"""Causal attention inside packed documents, registered with transformers as `"forgellm"`.

Rows hold several documents; `segment_ids` tell them apart. Each is computed by itself, so no masked
scores exist: on recent GPUs as `gpu_attention` does; on a CPU forward by torch's own kernel, backward
in blocks of queries that form the probabilities again from the saved log-sum-exp (Dao et al. 2022,
arXiv 2205.14135, 3.1). What the fused kernels lack (capped scores, sinks) is computed by hand.

Letters: B rows, H query heads, K key-value heads, G = H / K, T tokens, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from forgellm.engines.torch.gpu_attention import flash_attention, has_flash_attention
from forgellm.engines.torch.passes.native import passes_for
from forgellm.engines.torch.passes.tiles import tile_attention

NAME = "forgellm"
_BLOCK_BYTES = 512  # of a score matrix's height: 256 queries in bfloat16, 128 in float32
_MASKED = -1e30
_PROOF_TOKENS = 13
# What a model's code raises where it is not made for what is asked of it.
MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
_LOG2_E = math.log2(math.e)
_forward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Segment(NamedTuple):
    """Tokens `start:stop` of one row, all of one document."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True)
class PackedLayout:
    """What attends to what in a batch: made once, used by every layer."""

    segment_ids: Tensor
    segments: tuple[Segment, ...]

    def is_seen_whole(self, window: int | None) -> bool:
        """Whether no document is longer than the window."""
        return window is None or all(s.stop - s.start <= window for s in self.segments)

    @cached_property
    def borders(self) -> Tensor:
        """[n + 1] int32: the segments' ends, counted through all rows, from 0 on."""
        width = self.segment_ids.shape[1]
        ends = [0, *(s.row * width + s.stop for s in self.segments)]
        return torch.tensor(ends, dtype=torch.int32, device=self.segment_ids.device)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return max(s.stop - s.start for s in self.segments)

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
    segments: list[Segment] = []
    for row, ids in enumerate(segment_ids):
        starts = [0, *((ids[1:] != ids[:-1]).nonzero()[:, 0] + 1).tolist(), len(ids)]
        segments += [Segment(row, a, b) for a, b in zip(starts, starts[1:], strict=False)]
    return PackedLayout(segment_ids, tuple(segments))


def _distance(num_queries: int, num_keys: int, offset: int, device: torch.device) -> Tensor:
    """[Q, K] query position minus key position, the first query standing at `offset`."""
    queries = torch.arange(num_queries, device=device)[:, None] + offset
    return queries - torch.arange(num_keys, device=device)[None, :]


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, layout: PackedLayout, out: Tensor
) -> Tensor:
    """softmax(q k^T * scale) v inside each segment, in `out`. q and out [B, H, T, D]; k, v
    [B, K, T, D]. Returns the log-sum-exp [B, H, T] float32 of each query."""
    tiles = tile_attention(q, v)
    if tiles is not None:
        return tiles.forward(q, k, v, scale, layout.segments, out)
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    for s in layout.segments:
        part = (slice(s.row, s.row + 1), slice(None), slice(s.start, s.stop))
        out[part], lse[part] = _forward_kernel(q[part], k[part], v[part], 0.0, True, scale=scale)
    return lse


def attention_backward(  # noqa: PLR0913 (all that the forward pass had)
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    layout: PackedLayout,
    found: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Gradients of q, k and v in `found`, from that of `out`; the rest as `attention_forward` had and
    gave it.

    A query's log-sum-exp and the mean of its gradient are subtracted by the matrix products, as
    columns that meet ones: a pass less over all scores each.
    """
    tiles = tile_attention(q, v)
    if tiles is not None:
        return tiles.backward((grad, q, k, v, out), lse, scale, layout.segments, found)
    size, dtype, passes = q.shape[-1], q.dtype, passes_for(q.dtype, q.dtype)
    dq, dk, dv = found
    dk.zero_(), dv.zero_()
    delta = (grad * out).sum(-1, dtype=torch.float32)
    queries = torch.cat((q * (scale * _LOG2_E), _columns(lse * -_LOG2_E, dtype)), -1)
    grads = torch.cat((grad, _columns(delta.neg_(), dtype)), -1)
    ones = torch.ones(*k.shape[:-1], queries.shape[-1] - size, dtype=dtype)
    keys, values = torch.cat((k, ones), -1), torch.cat((v, ones), -1)
    step = _BLOCK_BYTES // dtype.itemsize
    for s in layout.segments:
        for q0 in range(s.start, s.stop, step):
            q1 = min(q0 + step, s.stop)
            at, seen = (s.row, slice(None), slice(q0, q1)), (s.row, slice(None), slice(s.start, q1))
            q_block, g_block = _group(queries[at], k.shape[1]), _group(grads[at], k.shape[1])
            probs = q_block @ keys[seen].mT
            d_scores = g_block @ values[seen].mT
            passes.softmax_backward(probs, d_scores, q1 - q0)
            dv[seen] += probs.mT @ g_block[..., :size]
            dk[seen] += d_scores.mT @ q_block[..., :size]
            dq[at] = (d_scores @ k[seen]).view_as(dq[at])
    dq.mul_(scale)
    dk.mul_(1 / _LOG2_E)


def _columns(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 [...] as columns [..., n] of `dtype` whose sum it is, but for the last 2^-16 of it."""
    if dtype == torch.float32:
        return x[..., None]
    high = x.to(dtype)
    return torch.stack((high, (x - high.float()).to(dtype)), -1)


def _group(x: Tensor, num_kv_heads: int) -> Tensor:
    """[H, Q, D] -> [K, G*Q, D]: query heads that share a key head become one matrix."""
    return x.reshape(num_kv_heads, -1, x.shape[-1])


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, layout: PackedLayout
    ) -> Tensor:
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)
        out = out.transpose(1, 2)
        lse = attention_forward(q, k, v, scale, layout, out)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale, ctx.layout = scale, layout
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        attention_backward(grad, q, k, v, out, lse, ctx.scale, ctx.layout, found)
        return *found, None, None


_packed_attention: Callable[..., Tensor] = _PackedAttention.apply


@dataclass(frozen=True)
class LocalMask:
    """What a layer of limited sight may see, as transformers describes it and not made yet: layers
    that give their window to the attention function need no mask."""

    described: Mapping[str, Any]

    def dense(self) -> Tensor | None:
        """[B, 1, T, S] bool, or None where every earlier token is seen."""
        return sdpa_mask(**self.described)  # type: ignore[no-any-return]


def forgellm_mask(**described: Any) -> LocalMask | None:
    """The function that transformers calls for the masks of each kind of layer."""
    return LocalMask(described) if described.get("local_size") else None


def forgellm_attention(  # noqa: PLR0913 (transformers gives the signature)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | LocalMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each attention layer.

    query [B, H, T, D]; key, value [B, K, S, D] with S >= T when a cache is in use, values of any
    size; `s_aux` [H] are the sinks. Returns [B, T, H, D]. Without `packed`, plain causal attention
    aligned to the end of the keys. Raises NotImplementedError for packed documents of a layer that
    sees by a mask of its own.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves them in float32
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if isinstance(attention_mask, LocalMask):
        attention_mask = None if sliding_window is not None else attention_mask.dense()
    if attention_mask is not None and packed is not None:
        raise NotImplementedError("a mask of the model's own in a packed row")
    if softcap is not None or s_aux is not None:
        mask = attention_mask
        if mask is None:
            mask = _every_mask(query, key, packed, sliding_window)
        out = _by_hand(query, key, value, mask, _Scores(scale, softcap, s_aux, dropout))
        return out.transpose(1, 2).contiguous(), None
    size = value.shape[-1]
    if packed is not None and not dropout:
        query, key, value = _of_one_size(query, key, value)
        if _is_on_cpu(query) and packed.is_seen_whole(sliding_window):
            out = _packed_attention(query, key, value, scale, packed)[..., :size]
            return out.transpose(1, 2).contiguous(), None
        if has_flash_attention(query, value):
            borders, longest = packed.borders, packed.longest
            out = flash_attention(query, key, value, scale, borders, longest, sliding_window)
            return out[..., :size].contiguous(), None
    mask = attention_mask
    if mask is None:
        mask = _mask(query, key, packed, sliding_window)
    if mask is not None and not _is_on_cpu(query):
        key, value = _one_for_each(query, key, value)
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and query.shape[2] > 1,
        scale=scale,
        enable_gqa=True,
    )
    return out[..., :size].transpose(1, 2).contiguous(), None


def _of_one_size(*heads: Tensor) -> tuple[Tensor, ...]:
    """With zeros behind the narrower ones, which change no score: in multi-head latent attention
    (arXiv 2405.04434) values are narrower than keys, and the fused kernels want one size."""
    size = max(x.shape[-1] for x in heads)
    return tuple(x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1])) for x in heads)


def _is_on_cpu(query: Tensor) -> bool:
    return query.device.type == "cpu"


def _one_for_each(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values for each query head: GPUs' kernels that take a mask do not share them."""
    groups = query.shape[1] // key.shape[1]
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


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


def _every_mask(
    query: Tensor, key: Tensor, packed: PackedLayout | None, window: int | None
) -> Tensor:
    """As `_mask`, also where plain causal masking would do."""
    mask = _mask(query, key, packed, window)
    if mask is not None:
        return mask
    num_queries, num_keys = query.shape[2], key.shape[2]
    return _distance(num_queries, num_keys, num_keys - num_queries, query.device) >= 0


class _Scores(NamedTuple):
    """How scores become probabilities: Gemma 2 caps them (arXiv 2408.00118), and the sinks [H] of
    gpt-oss stand beside them as one more score to which no value belongs (arXiv 2309.17453)."""

    scale: float
    softcap: float | None
    sinks: Tensor | None
    dropout: float


def _by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, how: _Scores) -> Tensor:
    """[B, H, T, D] with all scores in memory. mask [..., T, S] bool."""
    key, value = _one_for_each(query, key, value)
    scores = (query @ key.mT).float() * how.scale
    if how.softcap is not None:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    scores = scores.masked_fill(~mask, _MASKED)
    if how.sinks is not None:
        sinks = how.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, sinks), -1)
    probs = scores.softmax(-1)[..., : key.shape[2]].to(query.dtype)
    return F.dropout(probs, how.dropout) @ value


AttentionInterface.register(NAME, forgellm_attention)
AttentionMaskInterface.register(NAME, forgellm_mask)


@torch.inference_mode()
def use_own_attention(model: Any) -> None:
    """Let a model's layers call `forgellm_attention`, if it comes out as the model's own plain code
    for attention does on a few tokens; else they keep the one that transformers has chosen."""
    chosen = model.config._attn_implementation
    if not model._can_set_attn_implementation():
        return
    ids = torch.arange(_PROOF_TOKENS, device=model.device)[None]
    ids = (ids * 7 + 1) % int(model.config.get_text_config().vocab_size)

    def logits(name: str) -> Tensor:
        model.set_attn_implementation(name)
        found: Tensor = model(input_ids=ids, use_cache=False).logits.float()
        return found

    try:
        theirs, ours = logits("eager"), logits(NAME)
        tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
        is_same = float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())
    except MODEL_ERRORS:
        is_same = False
    if not is_same:
        model.set_attn_implementation(chosen)
