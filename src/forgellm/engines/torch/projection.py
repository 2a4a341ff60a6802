"""The parts of a decoder block with their gradients in closed form: linear layers with or without
LoRA, root-mean-square norms (Zhang and Sennrich 2019, arXiv 1910.07467), rotary positions (Su et al.
2021, arXiv 2104.09864).

Letters: N rows, D and O sizes of input and output, r rank, B, T, H, d as in `block`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgellm.engines.torch.lora import LoraLinear, add_low_rank, low_rank_backward


class Gradients:
    """Those of a block's trained parameters, filled as the backward pass comes by."""

    def __init__(self, trained: Sequence[Tensor]) -> None:
        self._found: dict[int, Tensor | None] = {id(parameter): None for parameter in trained}

    def want(self, parameter: Tensor | None) -> bool:
        return id(parameter) in self._found

    def put(self, parameter: Tensor, gradient: Tensor) -> None:
        self._found[id(parameter)] = gradient.to(parameter.dtype)

    def in_order(self) -> list[Tensor | None]:
        return list(self._found.values())


@dataclass(frozen=True)
class Projection:
    """x W^T + bias + scale (x A) B, the last part where there is an adapter; see `LoraLinear`."""

    weight: Tensor
    bias: Tensor | None
    adapter: LoraLinear | None

    @classmethod
    def of(cls, layer: nn.Module) -> Projection:
        """Raises TypeError for what is more than a linear layer with plain LoRA."""
        adapter = None
        if isinstance(layer, LoraLinear):
            if layer.m is not None or layer.dropout:
                raise TypeError("DoRA and dropout have no closed form here")
            adapter, layer = layer, layer.linear
        if type(layer) is not nn.Linear:
            raise TypeError("not a linear layer")
        return cls(layer.weight, layer.bias, adapter)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [N, D] -> [N, O], and (x A)^T [r, N] for the backward pass."""
        out = F.linear(x, self.weight, self.bias)
        lora = self.adapter
        if lora is None:
            return out, None
        return out, add_low_rank(out, x, lora.lora_a, lora.lora_b, lora.scale)

    def backward(
        self,
        g: Tensor,
        x: Tensor,
        low: Tensor | None,
        grads: Gradients,
        d_x: Tensor | None = None,
        wants_x: bool = True,
    ) -> Tensor:
        """Gradient of x [N, D] from that of the output, g [N, O], added to `d_x` if that is given."""
        if grads.want(self.weight):
            grads.put(self.weight, g.mT @ x)
        if self.bias is not None and grads.want(self.bias):
            grads.put(self.bias, g.sum(0))
        if wants_x:
            d_x = g @ self.weight if d_x is None else d_x.addmm_(g, self.weight)
        if self.adapter is not None:
            assert low is not None
            a, b = self.adapter.lora_a, self.adapter.lora_b
            d_a, d_b = low_rank_backward(g, x, low, a, b, self.adapter.scale, d_x)
            grads.put(a, d_a)
            grads.put(b, d_b)
        return d_x if d_x is not None else g


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

    def __call__(self, x: Tensor) -> Tensor:
        direction, _ = self._direction(x)
        return direction.to(x.dtype).mul_(self.weight)

    def backward(self, g: Tensor, x: Tensor, grads: Gradients) -> Tensor:
        """Gradient of x from that of the output, both of x's shape."""
        direction, inverse = self._direction(x)
        if grads.want(self.weight):
            grads.put(self.weight, (g.float() * direction).flatten(0, -2).sum(0))
        g = (g * self.weight).float()
        along = (g * direction).mean(-1, keepdim=True)
        return g.addcmul_(direction, along, value=-1).mul_(inverse).to(x.dtype)

    def _direction(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x divided by its root mean square, and one over that, both float32."""
        x = x.float()
        inverse = x.square().mean(-1, keepdim=True).add_(self.epsilon).rsqrt_()
        return x * inverse, inverse


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, T, H, d] -> [B, H, T, d], each pair (i, i + d/2) turned. cos, sin [B, T, d]."""
    return _turned(x.transpose(1, 2), cos[:, None], sin[:, None], 1)


def rotate_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, H, T, d] -> [B, T, H, d]: the gradient of `rotate`."""
    return _turned(x.transpose(1, 2), cos[:, :, None], sin[:, :, None], -1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = x.shape[-1] // 2
    out = torch.empty(x.shape, dtype=x.dtype)
    first, second, cos, sin = x[..., :half], x[..., half:], cos[..., :half], sin[..., :half]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin, value=sign)
    return out
