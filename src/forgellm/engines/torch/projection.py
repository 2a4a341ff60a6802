"""The parts of a decoder block with their gradients in closed form: linear layers with or without
LoRA, root-mean-square norms (Zhang and Sennrich 2019, arXiv 1910.07467), rotary positions (Su et al.
2021, arXiv 2104.09864).

Letters: N rows, D and O sizes of input and output, R the ranks of a projection's adapters together,
B, T, H, d as in `block`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgellm.engines.torch.lora import LoraLinear


class Gradients:
    """Those of a block's trained parameters, filled as the backward pass comes by."""

    def __init__(self, trained: Sequence[Tensor]) -> None:
        self._found: dict[int, Tensor | None] = {id(parameter): None for parameter in trained}

    def want(self, parameter: Tensor | None) -> bool:
        return id(parameter) in self._found

    def put(self, parameter: Tensor, gradient: Tensor) -> None:
        """Laid out as the parameter is: the fused optimiser reads both as they lie."""
        self._found[id(parameter)] = gradient.to(parameter.dtype).contiguous()

    def in_order(self) -> list[Tensor | None]:
        return list(self._found.values())


class Kept(NamedTuple):
    """What a projection's backward pass needs of its forward pass, but for the input: the adapters'
    (x A)^T [R, N], A^T [R, D], and scale B [R, O], each in its own columns."""

    low: Tensor
    a: Tensor
    b: Tensor


class Projection:
    """Linear layers of one input as one product: x W^T + bias + scale (x A) B, the last part where
    there are adapters. Frozen weights of several layers become views of one matrix."""

    def __init__(self, *layers: nn.Module) -> None:
        """Raises TypeError for what is more than a linear layer with plain LoRA."""
        self._linears: list[Any] = [
            layer.linear if isinstance(layer, LoraLinear) else layer for layer in layers
        ]
        if any(type(linear) is not nn.Linear for linear in self._linears):
            raise TypeError("not a linear layer")
        ends = [0]
        for linear in self._linears:
            ends.append(ends[-1] + int(linear.out_features))
        self.outputs = [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]
        pairs = zip(self.outputs, layers, strict=True)
        self._adapters = [(where, a) for where, a in pairs if isinstance(a, LoraLinear)]
        if any(adapter.m is not None or adapter.dropout for _, adapter in self._adapters):
            raise TypeError("DoRA and dropout have no closed form here")
        self._joint: Tensor | None = None

    def join(self) -> None:
        """Put frozen weights side by side in memory."""
        weights = [linear.weight for linear in self._linears]
        if len(weights) > 1 and not any(weight.requires_grad for weight in weights):
            self._joint = torch.cat([weight.data for weight in weights])
            for where, weight in zip(self.outputs, weights, strict=True):
                weight.data = self._joint[where]

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """Weight [O, D] and bias [O]. Raises TypeError where there are adapters."""
        if self._adapters:
            raise TypeError("an adapter")
        dtype = self._linears[0].weight.dtype
        return self._weight(dtype), self._bias(dtype)

    def __call__(self, x: Tensor) -> tuple[Tensor, Kept | None]:
        """x [N, D] -> [N, O], and what the backward pass needs."""
        out = F.linear(x, self._weight(x.dtype), self._bias(x.dtype))
        if not self._adapters:
            return out, None
        # What has the rank as a side is [rank, many]: CPU libraries are slower at [many, rank].
        a = torch.cat([adapter.lora_a.mT for _, adapter in self._adapters]).to(x.dtype)
        b = torch.zeros(len(a), out.shape[1], dtype=x.dtype)
        start = 0
        for where, adapter in self._adapters:
            rows = b[start : start + len(adapter.lora_b), where]
            torch.mul(adapter.lora_b, adapter.scale, out=rows)
            start += len(rows)
        low = a @ x.mT
        out.addmm_(low.mT, b)
        return out, Kept(low, a, b)

    def backward(
        self, g: Tensor, x: Tensor, kept: Kept | None, grads: Gradients, wants_x: bool = True
    ) -> Tensor | None:
        """Gradient of x [N, D] from that of the output, g [N, O]."""
        self._weight_gradients(g, x, grads)
        d_x = g @ self._weight(g.dtype) if wants_x else None
        if kept is None:
            return d_x
        g_low = kept.b @ g.mT
        d_a, d_b = g_low @ x, kept.low @ g
        start = 0
        for where, adapter in self._adapters:
            rows = slice(start, start + len(adapter.lora_b))
            grads.put(adapter.lora_a, d_a[rows].mT)
            grads.put(adapter.lora_b, d_b[rows, where].float().mul_(adapter.scale))
            start = rows.stop
        return d_x if d_x is None else d_x.addmm_(g_low.mT, kept.a)

    def _weight_gradients(self, g: Tensor, x: Tensor, grads: Gradients) -> None:
        for where, linear in zip(self.outputs, self._linears, strict=True):
            if grads.want(linear.weight):
                grads.put(linear.weight, g[:, where].mT @ x)
            if grads.want(linear.bias):
                grads.put(linear.bias, g[:, where].sum(0))

    def _weight(self, dtype: torch.dtype) -> Tensor:
        """[O, D]. Trained weights are float32 whatever is computed in."""
        if self._joint is not None:
            return self._joint
        weights = [linear.weight.to(dtype) for linear in self._linears]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        biases = [linear.bias for linear in self._linears]
        if all(bias is None for bias in biases):
            return None
        pairs = zip(biases, self._linears, strict=True)
        parts = [
            linear.weight.new_zeros(linear.out_features) if b is None else b for b, linear in pairs
        ]
        return torch.cat(parts).to(dtype)


@dataclass(frozen=True)
class Norm:
    """w * x / sqrt(mean(x^2) + epsilon) over the last axis, inside in float32."""

    weight: Tensor
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> Norm:
        """Raises AttributeError, TypeError for other kinds of norms."""
        names = {name for name, _ in module.named_parameters()}
        if names != {"weight"} or "RMSNorm" not in type(module).__name__:
            raise TypeError("not a root-mean-square norm")
        epsilon = getattr(module, "variance_epsilon", None)
        return cls(module.weight, float(module.eps if epsilon is None else epsilon))

    @property
    def is_trained(self) -> bool:
        return self.weight.requires_grad

    def __call__(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """In `dtype`, or that of x."""
        direction, _ = self._direction(x)
        dtype = dtype or x.dtype
        return direction.to(dtype).mul_(self.weight.to(dtype))

    def backward(self, g: Tensor, x: Tensor, grads: Gradients) -> Tensor:
        """Gradient of x from that of the output, both of x's shape."""
        direction, inverse = self._direction(x)
        if grads.want(self.weight):
            grads.put(self.weight, (g.float() * direction).flatten(0, -2).sum(0))
        g = (g * self.weight.to(g.dtype)).float()
        along = (g * direction).mean(-1, keepdim=True)
        return g.addcmul_(direction, along, value=-1).mul_(inverse).to(x.dtype)

    def _direction(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x divided by its root mean square, and one over that, both float32."""
        x = x.float()
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(self.epsilon).rsqrt_()
        return x * inverse, inverse


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, T, H, d], each pair (i, i + d/2) turned. cos, sin [B, T, d]."""
    return _turned(x, cos, sin, 1, torch.empty(x.shape, dtype=x.dtype))


def rotate_back(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """The gradient of `rotate`, written to `out`."""
    return _turned(x, cos, sin, -1, out)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int, out: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, :, None, :half], sin[:, :, None, :half]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin, value=sign)
    return out
