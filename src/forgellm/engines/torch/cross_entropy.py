"""Linear projection and cross-entropy in one, in chunks, so that no `[B*T, vocab]` logits exist.

The sum's gradient with respect to the hidden states is formed in the forward pass, chunk by chunk,
while the chunk's logits are still at hand (the idea of Liger's fused linear cross-entropy, arXiv
2410.10989, and of Wijmans et al. 2024, arXiv 2411.09009). That of single log-probabilities needs the logits once more, as only the backward
pass knows how much each counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forgellm.engines.torch.passes.native import passes_for
from forgellm.engines.torch.passes.plain import LN_2, Passes

CHUNK_BYTES = 26_000_000
_LOG2_E = math.log2(math.e)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """Sum of the cross-entropies in nats, a float32 scalar.

    hidden [N, D]; weight [V, D], a projection without bias; targets [N] int64. With `softcap` the
    logits are `softcap * tanh(logits / softcap)`; they are multiplied by `logit_scale` before.
    Differentiable in `hidden`, and in `weight` where it needs a gradient.
    """
    return _apply(hidden, weight, targets, softcap, logit_scale)


def chunk_rows(weight: Tensor, dtype: torch.dtype) -> int:
    """Rows of logits that take about CHUNK_BYTES in a type."""
    return max(16, CHUNK_BYTES // (dtype.itemsize * weight.shape[0]))


def _even_chunks(hidden: Tensor, weight: Tensor, most: int) -> Iterator[tuple[slice, Tensor]]:
    """Parts of the rows [N, D] of about one size, each with room for its logits [n, V]: a short one at
    the end would read all weights for a few rows, and an allocator keeps what is taken anew."""
    num_rows = len(hidden)
    step = max(1, -(-num_rows // max(1, -(-num_rows // most))))
    room = hidden.new_empty(min(step, num_rows), len(weight))
    for start in range(0, num_rows, step):
        part = slice(start, min(start + step, num_rows))
        yield part, room[: part.stop - start]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float | None,
        logit_scale: float,
    ) -> Tensor:
        gradients = _Gradients(ctx, hidden, weight)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        projection = weight.to(hidden.dtype)
        most = gradients.chunk_rows(weight, hidden.dtype)
        for part, room in _even_chunks(hidden, weight, most):
            rows, labels = hidden[part], targets[part]
            chunk = _chunk(rows, projection, labels, room, softcap, logit_scale)
            loss += chunk.losses.sum()
            if gradients.are_wanted:
                d_logits, factor = _d_logits(chunk, labels, logit_scale)
                gradients.add(d_logits, factor, rows, projection, part)
        ctx.d_hidden, ctx.d_weight = gradients.of(weight.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden = None if ctx.d_hidden is None else ctx.d_hidden.mul_(grad.to(ctx.d_hidden.dtype))
        d_weight = None if ctx.d_weight is None else ctx.d_weight.mul_(grad.to(ctx.d_weight.dtype))
        ctx.d_hidden = ctx.d_weight = None
        return d_hidden, d_weight, None, None, None


_apply: Callable[..., Tensor] = _LinearCrossEntropy.apply


def target_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """[N] float32 log-probability of each target in nats; arguments as for
    `linear_cross_entropy`, and differentiable like it."""
    return _apply_log_probs(hidden, weight, targets, softcap, logit_scale)


class _TargetLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float | None,
        logit_scale: float,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.softcap, ctx.logit_scale = softcap, logit_scale
        found = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        projection = weight.to(hidden.dtype)
        most = chunk_rows(weight, hidden.dtype)
        for part, room in _even_chunks(hidden, weight, most):
            rows, labels = hidden[part], targets[part]
            chunk = _chunk(rows, projection, labels, room, softcap, logit_scale)
            found[part] = -chunk.losses
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        gradients = _Gradients(ctx, hidden, weight)
        projection = weight.to(hidden.dtype)
        most = gradients.chunk_rows(weight, hidden.dtype)
        for part, room in _even_chunks(hidden, weight, most):
            rows, labels = hidden[part], targets[part]
            chunk = _chunk(rows, projection, labels, room, ctx.softcap, ctx.logit_scale)
            d_logits, factor = _d_logits(chunk, labels, ctx.logit_scale)
            factor.mul_(-grad[part, None])
            gradients.add(d_logits, factor, rows, projection, part)
        return *gradients.of(weight.dtype), None, None, None


_apply_log_probs: Callable[..., Tensor] = _TargetLogProbs.apply


class _Gradients:
    """Those of hidden [N, D] and weight [V, D] that autograd asks for, filled chunk by chunk."""

    def __init__(self, ctx: Any, hidden: Tensor, weight: Tensor) -> None:
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        self._hidden = torch.empty_like(hidden) if needs_hidden else None
        self._weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        self.are_wanted = needs_hidden or needs_weight

    def chunk_rows(self, weight: Tensor, dtype: torch.dtype) -> int:
        """Fewer chunks where each adds to a gradient [V, D], which costs more than the chunk."""
        return chunk_rows(weight, dtype) * (1 if self._weight is None else 4)

    def add(
        self, d_logits: Tensor, factor: Tensor, rows: Tensor, projection: Tensor, part: slice
    ) -> None:
        """d_logits [n, V] times factor [n, 1] of the rows [n, D] that are `part` of all."""
        if self._hidden is not None:
            found = self._hidden[part]
            torch.mm(d_logits, projection, out=found)
            found.mul_(factor)
        if self._weight is not None:
            self._weight += d_logits.mT @ (rows * factor).to(rows.dtype)

    def of(self, weight_dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        return self._hidden, None if self._weight is None else self._weight.to(weight_dtype)


class _Chunk(NamedTuple):
    """Some rows' losses [n] in nats, and what their gradient is made of: the probabilities [n, V]
    times their sum, that of the label left out; the sum [n], and what the others have of it; and
    the slope of the cap. All float32 but the probabilities."""

    losses: Tensor
    probs: Tensor
    total: Tensor
    others: Tensor
    slope: Tensor | None


def _chunk(
    rows: Tensor,
    weight: Tensor,
    labels: Tensor,
    room: Tensor,
    softcap: float | None,
    logit_scale: float,
) -> _Chunk:
    """labels [n]. The logits are computed in `room` [n, V]."""
    logits, slope = _base2_logits(rows, weight, room, softcap, logit_scale)
    on_cpu = logits.device.type == "cpu"
    passes = passes_for(logits.dtype, logits.dtype) if on_cpu else Passes()
    behind, others = passes.exponentials(logits, labels)
    behind.mul_(LN_2)
    label = torch.exp(-behind)
    losses = behind + torch.log1p(others + (label - 1))
    return _Chunk(losses, logits, others + label, others, slope)


def _d_logits(chunk: _Chunk, labels: Tensor, logit_scale: float) -> tuple[Tensor, Tensor]:
    """The gradient of the rows' losses in nats as [n, V], in the place of `chunk.probs`, times
    [n, 1] float32."""
    d_logits = chunk.probs
    d_logits[torch.arange(len(labels), device=labels.device), labels] = -chunk.others.to(
        d_logits.dtype
    )
    if chunk.slope is not None:
        d_logits.mul_(chunk.slope)
    return d_logits, (logit_scale / chunk.total)[:, None]


def _base2_logits(
    rows: Tensor, weight: Tensor, room: Tensor, softcap: float | None, logit_scale: float
) -> tuple[Tensor, Tensor | None]:
    """In `room` [n, V], logits times log2(e), and the slope of the cap if there is one.

    Base 2 because `exp` of very negative numbers is slow on CPUs and `exp2` is not.
    """
    if softcap is None:
        return torch.mm(rows * (logit_scale * _LOG2_E), weight.mT, out=room), None
    tanh = torch.mm(rows, weight.mT, out=room).mul_(logit_scale / softcap).tanh_()
    slope = 1 - tanh.square()
    return tanh.mul_(softcap * _LOG2_E), slope
