"""The parts of a decoder block that have parameters, with their gradients in closed form: linear layers
with or without LoRA, and root-mean-square norms.

Letters: N rows, D and O sizes of input and output, R the ranks of a projection's adapters together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgellm.engines.torch.lora import LoraLinear
from forgellm.engines.torch.passes.plain import Passes, rms_direction

_TILE_COLUMNS = 32  # of bfloat16: products with other widths are a third slower


def in_a_row(sizes: Sequence[int]) -> list[slice]:
    """Where parts of these sizes stand, one behind the other."""
    ends = [0, *accumulate(sizes)]
    return [slice(*pair) for pair in pairwise(ends)]


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


class Projection:
    """Linear layers of one input as one product: x W^T + bias + scale (x A) B, the last part where
    there are adapters.

    Their scale B stand as further columns beside W [O, D], so that [x, x A] times [W, scale B^T] is
    all of the output, and a gradient times it is both its part of x's and, times A^T, what it lacks.
    Frozen weights become views of that matrix.
    """

    def __init__(self, *layers: nn.Module) -> None:
        """Raises TypeError for what is more than a linear layer with plain LoRA."""
        self._linears: list[Any] = [
            layer.linear if isinstance(layer, LoraLinear) else layer for layer in layers
        ]
        if any(type(linear) is not nn.Linear for linear in self._linears):
            raise TypeError("not a linear layer")
        self.outputs = in_a_row([int(linear.out_features) for linear in self._linears])
        self.in_features = int(self._linears[0].in_features)
        pairs = zip(self.outputs, layers, strict=True)
        self._adapters = [(where, a) for where, a in pairs if isinstance(a, LoraLinear)]
        if any(adapter.m is not None or adapter.dropout for _, adapter in self._adapters):
            raise TypeError("DoRA and dropout have no closed form here")
        self._rank = sum(len(adapter.lora_b) for _, adapter in self._adapters)
        self._columns = -(-self._rank // _TILE_COLUMNS) * _TILE_COLUMNS
        self._is_frozen = not any(linear.weight.requires_grad for linear in self._linears)
        if self._adapters and not self._is_frozen:
            raise TypeError("adapters on trained weights")
        self._joint: Tensor | None = None
        self._a = torch.empty(0)  # [R, D]

    def join(self) -> None:
        """Put frozen weights into one matrix with room for the adapters."""
        if not self._is_frozen or (len(self._linears) == 1 and not self._columns):
            return
        weights = [linear.weight for linear in self._linears]
        size = (self.outputs[-1].stop, self.in_features + self._columns)
        joint = weights[0].new_zeros(size)
        for where, weight in zip(self.outputs, weights, strict=True):
            joint[where, : self.in_features] = weight.data
            weight.data = joint[where, : self.in_features]
        self._joint = joint

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """Weight [O, D] and bias [O]. Raises TypeError where there are adapters."""
        if self._adapters:
            raise TypeError("an adapter")
        dtype = self._linears[0].weight.dtype
        return self._matrix(dtype), self._bias(dtype)

    def room(self, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What is to be called with, [rows, D + columns], and its part for the input [rows, D]."""
        room = torch.empty(rows, self.in_features + self._columns, dtype=dtype)
        return room, room[:, : self.in_features]

    def __call__(self, room: Tensor) -> tuple[Tensor, Tensor | None]:
        """[N, O] of the input in `room`, which it completes, and x A [N, R] for the backward pass."""
        low = None
        if self._adapters:
            self._write_adapters()
            low = F.linear(room[:, : self.in_features], self._a)
            rest = room[:, self.in_features :]
            rest[:, : self._rank], rest[:, self._rank :] = low, 0
        return F.linear(room, self._matrix(room.dtype), self._bias(room.dtype)), low

    def input_backward(self, g: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients of the input [N, D] and of x A [N, R] from that of the output, g [N, O]."""
        found = g @ self._matrix(g.dtype)
        if not self._adapters:
            return found, None
        d_x, g_low = found[:, : self.in_features], found[:, self.in_features :][:, : self._rank]
        return d_x.addmm_(g_low, self._a), g_low

    def low_backward(self, g: Tensor) -> Tensor | None:
        """The gradient of x A [N, R] alone."""
        if not self._adapters:
            return None
        return g @ self._matrix(g.dtype)[:, self.in_features :][:, : self._rank]

    def parameters_backward(
        self, g: Tensor, x: Tensor, low: Tensor | None, g_low: Tensor | None, grads: Gradients
    ) -> None:
        """The gradients of what is trained, from those of the output and of x A, x and x A."""
        for where, linear in zip(self.outputs, self._linears, strict=True):
            if grads.want(linear.weight):
                grads.put(linear.weight, g[:, where].mT @ x)
            if grads.want(linear.bias):
                grads.put(linear.bias, g[:, where].sum(0))
        if low is None or g_low is None:
            return
        d_a, d_b = g_low.mT @ x, low.mT @ g
        start = 0
        for where, adapter in self._adapters:
            rows = slice(start, start + len(adapter.lora_b))
            grads.put(adapter.lora_a, d_a[rows].mT)
            grads.put(adapter.lora_b, d_b[rows, where].float().mul_(adapter.scale))
            start = rows.stop

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        """[O, D + columns]. Trained weights are float32 whatever is computed in."""
        if self._joint is not None:
            return self._joint
        weights: list[Tensor] = [linear.weight.detach() for linear in self._linears]
        if len(weights) == 1:
            return weights[0].to(dtype)
        joint = weights[0].new_empty(self.outputs[-1].stop, self.in_features, dtype=dtype)
        for where, weight in zip(self.outputs, weights, strict=True):
            joint[where] = weight
        return joint

    @torch.no_grad()
    def _write_adapters(self) -> None:
        """As they are now; threads that do so at once write the same."""
        assert self._joint is not None
        start = self.in_features
        for where, adapter in self._adapters:
            columns = self._joint[where, start : start + len(adapter.lora_b)]
            columns.copy_(adapter.lora_b.mT * adapter.scale)
            start += len(adapter.lora_b)
        self._a = torch.cat([a.lora_a.mT for _, a in self._adapters]).to(self._joint.dtype)

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        found = joint_bias([linear.bias for linear in self._linears], self.outputs)
        return None if found is None else found.to(dtype)


def joint_bias(biases: Sequence[Tensor | None], outputs: Sequence[slice]) -> Tensor | None:
    """[O] of layers that stand in these places of it, with zeros for those that have none."""
    given = [bias for bias in biases if bias is not None]
    if not given:
        return None
    joint = given[0].new_zeros(outputs[-1].stop)
    for where, bias in zip(outputs, biases, strict=True):
        if bias is not None:
            joint[where] = bias
    return joint


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

    @property
    def floats(self) -> Tensor:
        """The weight [D] in float32."""
        return self.weight.detach().float()

    def into(self, out: Tensor, passes: Passes, x: Tensor) -> None:
        """Of x [N, D] in `out`."""
        passes.rms_norm(x, self.floats, self.epsilon, out)

    def again(
        self, passes: Passes, x: Tensor, projection: Projection, dtype: torch.dtype
    ) -> Tensor:
        """As a projection read it."""
        _, out = projection.room(len(x), dtype)
        self.into(out, passes, x)
        return out

    def backward(
        self, passes: Passes, g: Tensor, x: Tensor, plus: Tensor, grads: Gradients
    ) -> Tensor:
        """plus and the gradient of x, from that of the output; all [N, D]."""
        wants_weight = grads.want(self.weight)
        found, d_weight = passes.rms_norm_backward(
            g, x, self.floats, self.epsilon, plus, wants_weight
        )
        if d_weight is not None:
            grads.put(self.weight, d_weight)
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """In the type of x."""
        direction, _ = rms_direction(x, self.epsilon)
        return direction.to(x.dtype).mul_(self.weight.to(x.dtype))
