"""Each pass in torch operations: for machines without a C compiler, and what `native` is held to.

Letters: N rows (tokens), D hidden size, F size of the gated layer, H query heads, K key heads, d head
size, V vocabulary, Q queries, S keys. Inputs and outputs are of the type that products compute in, x
and its sums of the type that blocks add in, and what is computed between them is float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LN_2 = math.log(2)


class Turns(NamedTuple):
    """How queries and keys are turned by their places: cosines and sines [N, d/2] float32 (Su et al.
    2021, arXiv 2104.09864), weights [d] float32 of their norms or None, the norms' epsilon."""

    cosines: Tensor
    sines: Tensor
    query_weight: Tensor | None
    key_weight: Tensor | None
    epsilon: float


class Passes:
    """In torch operations."""

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float, out: Tensor) -> None:
        """`out` [N, D] = weight * x / sqrt(mean(x^2) + epsilon), weight [D] float32 (Zhang and
        Sennrich 2019, arXiv 1910.07467)."""
        direction, _ = rms_direction(x, epsilon)
        out.copy_(direction.mul_(weight))

    def add_rms_norm(
        self, x: Tensor, sums: Tensor, weight: Tensor, epsilon: float, out: Tensor
    ) -> Tensor:
        """x + sums, of the type of x, with its norm in `out`."""
        middle = x + sums
        self.rms_norm(middle, weight, epsilon, out)
        return middle

    def rms_norm_backward(
        self, g: Tensor, x: Tensor, weight: Tensor, epsilon: float, plus: Tensor, wants_weight: bool
    ) -> tuple[Tensor, Tensor | None]:
        """plus [N, D] and the gradient of x, from that of the norm's output; the gradient of weight
        [D] where wanted."""
        direction, inverse = rms_direction(x, epsilon)
        d_weight = (g * direction).sum(0) if wants_weight else None
        found = g * weight
        along = (found * direction).mean(-1, keepdim=True)
        found = found.addcmul_(direction, along, value=-1).mul_(inverse)
        return found.add_(plus).to(x.dtype), d_weight

    def rotate(self, qkv: Tensor, turns: Turns, num_heads: tuple[int, int]) -> Tensor:
        """Queries and keys [N, H + K, d], normed where there are weights, and turned in pairs
        (i, i + d/2). qkv [N, (H + 2K) d]; `num_heads` are H and K."""
        x = _heads(qkv, turns, num_heads).float()
        if turns.query_weight is not None:
            x = rms_direction(x, turns.epsilon)[0].mul_(_head_weights(turns, num_heads))
        return _turned(x, turns.cosines, turns.sines).to(qkv.dtype)

    def rotate_backward(
        self,
        g: Tensor,
        qkv: Tensor,
        turns: Turns,
        num_heads: tuple[int, int],
        out: Tensor,
        wants_weight: bool,
    ) -> tuple[Tensor, Tensor] | None:
        """The gradients of queries and keys, in their places in `out` (as qkv), from that of what
        `rotate` gave; those of the norms' weights [d] where wanted."""
        back = _turned(g.float(), turns.cosines, -turns.sines)
        d_weights = None
        if turns.query_weight is not None:
            direction, inverse = rms_direction(_heads(qkv, turns, num_heads), turns.epsilon)
            if wants_weight:
                each = torch.split(back * direction, list(num_heads), 1)
                d_weights = each[0].sum((0, 1)), each[1].sum((0, 1))
            back = back * _head_weights(turns, num_heads)
            along = (back * direction).mean(-1, keepdim=True)
            back = back.addcmul_(direction, along, value=-1).mul_(inverse)
        _heads(out, turns, num_heads).copy_(back)
        return d_weights

    def swiglu(self, gate_up: Tensor, out: Tensor) -> None:
        """`out` [N, F] = silu(gate) * up of gate_up [N, 2F] (Shazeer 2020, arXiv 2002.05202)."""
        gate, up = gate_up.chunk(2, -1)
        torch.mul(F.silu(gate), up, out=out)

    def swiglu_backward(self, g: Tensor, gate_up: Tensor, out: Tensor) -> Tensor:
        """The gradient of gate_up [N, 2F] from that of what `swiglu` made of it; `out` as there."""
        gate, up = gate_up.chunk(2, -1)
        act = F.silu(gate)
        torch.mul(act, up, out=out)
        found = torch.empty_like(gate_up)
        d_gate, d_up = found.chunk(2, -1)
        torch.mul(act, g, out=d_up)
        torch.ops.aten.silu_backward.grad_input(g * up, gate, grad_input=d_gate)
        return found

    def softmax_backward(self, scores: Tensor, d_probs: Tensor, num_queries: int) -> None:
        """Causal scores [K, G * Q, S] in base 2 less their log-sum-exp become probabilities, and the
        gradients of those become the scores' own. The last of the Q queries sees all keys."""
        offset = scores.shape[-1] - num_queries
        probs = scores.exp2_().view(-1, num_queries, scores.shape[-1])
        probs[:, :, offset:].tril_()
        d_probs.mul_(scores)

    def exponentials(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, V] in base 2 become 2^(logit - greatest), but 0 for the label, or a narrow type
        could not tell a likely label's doubt from none. Returns [N] float32: how far the label is
        behind the greatest, and the sum of what the row now holds. labels [N] int64."""
        rows = torch.arange(len(labels), device=labels.device)
        top = logits.amax(-1, keepdim=True)
        behind = top[:, 0].float() - logits[rows, labels]
        logits.sub_(top).exp2_()
        logits[rows, labels] = 0.0
        return behind, logits.sum(-1, dtype=torch.float32)


def rms_direction(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x divided by its root mean square, and one over that, both float32."""
    x = x.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return x * inverse, inverse


def _heads(qkv: Tensor, turns: Turns, num_heads: tuple[int, int]) -> Tensor:
    """A view [N, H + K, d] of the queries and keys."""
    size = 2 * turns.cosines.shape[-1]
    return qkv[:, : sum(num_heads) * size].view(len(qkv), -1, size)


def _head_weights(turns: Turns, num_heads: tuple[int, int]) -> Tensor:
    """[H + K, d]."""
    assert turns.query_weight is not None and turns.key_weight is not None
    pairs = zip((turns.query_weight, turns.key_weight), num_heads, strict=True)
    return torch.cat([weight.expand(count, -1) for weight, count in pairs])


def _turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin, out = cosines[:, None], sines[:, None], torch.empty(x.shape, dtype=x.dtype)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out
