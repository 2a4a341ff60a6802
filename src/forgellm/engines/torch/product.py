"""Linear layers of one input as one product, for answering: weights are read, and not trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgellm.engines.torch.lora import LoraLinear
from forgellm.engines.torch.passes.affine import TiledWeight
from forgellm.engines.torch.projection import Projection, in_a_row, joint_bias
from forgellm.engines.torch.quantised import AffineWeight, QuantisedLinear


@dataclass(frozen=True)
class LowRank:
    """B A x, which an adapter adds to a product: a [R, in], b [out, R] with the scale in it."""

    a: Tensor
    b: Tensor

    @classmethod
    def of(cls, layers: Sequence[nn.Module], outputs: Sequence[slice], like: Tensor) -> LowRank:
        """Of the layers that have an adapter. Raises TypeError for DoRA, which scales the sum."""
        pairs = zip(outputs, layers, strict=True)
        adapted = [(where, layer) for where, layer in pairs if isinstance(layer, LoraLinear)]
        if any(adapter.m is not None for _, adapter in adapted):
            raise TypeError("DoRA")
        ranks = in_a_row([len(adapter.lora_b) for _, adapter in adapted])
        b = like.new_zeros(outputs[-1].stop, ranks[-1].stop)
        for rank, (where, adapter) in zip(ranks, adapted, strict=True):
            b[where, rank] = (adapter.lora_b.mT * adapter.scale).to(like.dtype)
        return cls(torch.cat([adapter.lora_a.mT for _, adapter in adapted]).to(like.dtype), b)

    def add(self, out: Tensor, x: Tensor) -> None:
        """To [out, N] from [in, N]."""
        out.addmm_(self.b, self.a @ x)


@dataclass(frozen=True)
class Product:
    """W x + bias, [in, N] -> [out, N]. W is plain, or stays packed in 4 or 8 bits with what adapters
    add to it apart."""

    weight: Tensor | AffineWeight | TiledWeight
    bias: Tensor | None
    outputs: Sequence[slice]
    added: LowRank | None = None

    @classmethod
    def of(cls, *layers: nn.Module) -> Product:
        """The layers' weights become views of the product's, or where tiles need another order stay
        in their files. Raises TypeError for other layers."""
        linears = [layer.linear if isinstance(layer, LoraLinear) else layer for layer in layers]
        packed = [linear for linear in linears if isinstance(linear, QuantisedLinear)]
        if not packed:
            projection = Projection(*layers)
            projection.join()
            return cls(*projection.plain(), projection.outputs)
        if len(packed) < len(layers):
            raise TypeError("weights of two kinds")
        outputs = in_a_row([linear.weights.shape[0] for linear in packed])
        has_adapters = any(isinstance(layer, LoraLinear) for layer in layers)
        added = LowRank.of(layers, outputs, packed[0].weights.scales) if has_adapters else None
        weights = [linear.weights for linear in packed]
        weight = TiledWeight.of(weights) or AffineWeight.joined(weights)
        return cls(weight, joint_bias([linear.bias for linear in packed], outputs), outputs, added)

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.weight
        out = weight @ x if isinstance(weight, Tensor) else weight.times(x)
        self.add_rest(out, x)
        return out

    def add_rest(self, out: Tensor, x: Tensor) -> None:
        """To W x, what is beside it."""
        if self.added is not None:
            self.added.add(out, x)
        if self.bias is not None:
            out.add_(self.bias[:, None])
