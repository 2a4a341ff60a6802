"""Layers whose weights stay in MLX's affine format, and are made plain a block of rows at a time, or
multiplied as they are packed (`product`).

A number is q * scale + bias, rounded after each of the two operations in the type that the model
computes in, as `mx.dequantize` does it. `engines.affine` says how the numbers were made.

Letters: N rows (outputs), C columns (inputs), G groups of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from forgellm.engines.torch.passes.affine import plain_rows
from forgellm.engines.whole import first_extra_layer, foreign, require_whole
from forgellm.errors import UnsupportedModel

_CPU_BLOCK = 1_000_000  # numbers made plain at a time: about a core's cache
_GPU_BLOCK = 64_000_000


class AffineWeight(nn.Module):
    """A frozen matrix [N, C] in 4 or 8 bits: `packed` [N, C * bits / 8] uint8, scales, biases [N, G]."""

    packed: Tensor
    scales: Tensor
    biases: Tensor

    def __init__(self, words: Tensor, scales: Tensor, biases: Tensor, num_columns: int):
        """words [N, C * bits / 32] uint32. Raises UnsupportedModel for another number of bits."""
        super().__init__()
        packed = words.view(torch.uint8)
        self.bits = 8 * packed.shape[1] // num_columns
        fits = packed.shape[1] * 8 == self.bits * num_columns and num_columns % scales.shape[1] == 0
        if self.bits not in (4, 8) or not fits or scales.shape != biases.shape:
            raise UnsupportedModel(
                f"The torch engine reads weights of 4 and 8 bits, not {self.bits}",
                suggestion="Use the mlx engine, or the model's bfloat16 release.",
            )
        self.shape = (len(packed), num_columns)
        for name, tensor in (("packed", packed), ("scales", scales), ("biases", biases)):
            self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def joined(cls, weights: Sequence[AffineWeight]) -> AffineWeight:
        """The rows of several, which become views of it. Raises TypeError where they differ in how
        they were rounded."""
        first = weights[0]
        if any((w.bits, w.scales.shape[1]) != (first.bits, first.scales.shape[1]) for w in weights):
            raise TypeError("weights rounded in different ways")
        if len(weights) == 1:
            return first
        parts = ("packed", "scales", "biases")
        words, scales, biases = (torch.cat([getattr(w, part) for w in weights]) for part in parts)
        joint = cls(words, scales, biases, first.shape[1])
        for part in parts:
            views = getattr(joint, part).split([weight.shape[0] for weight in weights])
            for weight, view in zip(weights, views, strict=True):
                setattr(weight, part, view)
        return joint

    @property
    def dtype(self) -> torch.dtype:
        """That it is computed in."""
        return self.scales.dtype

    @property
    def device(self) -> torch.device:
        return self.scales.device

    def times(self, x: Tensor) -> Tensor:
        """W x [N, columns] of x [C, columns]."""
        out = x.new_empty(self.shape[0], x.shape[1])
        for which, rows in self.blocks():
            torch.mm(rows, x, out=out[which])
        return out

    def rows(self, which: Any) -> Tensor:
        """Plain numbers [..., C] of the rows that a slice or a tensor of indices picks."""
        in_c = plain_rows(self, which) if isinstance(which, slice) else None
        if in_c is not None:
            return in_c
        packed, scales, biases = self.packed[which], self.scales[which], self.biases[which]
        if self.bits == 8:
            numbers = packed.to(scales.dtype)
        else:
            pairs = packed.new_empty((*packed.shape, 2), dtype=scales.dtype)
            pairs[..., 0] = packed & 15
            pairs[..., 1] = packed >> 4
            numbers = pairs.flatten(-2)
        groups = numbers.view(*scales.shape, self.shape[1] // scales.shape[-1])
        return groups.mul_(scales[..., None]).add_(biases[..., None]).flatten(-2)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some at a time."""
        size = _CPU_BLOCK if self.packed.device.type == "cpu" else _GPU_BLOCK
        step = max(1, size // self.shape[1])
        for start in range(0, self.shape[0], step):
            which = slice(start, min(start + step, self.shape[0]))
            yield which, self.rows(which)

    def plain(self) -> Tensor:
        """[N, C]"""
        plain = self.scales.new_empty(self.shape)
        for which, rows in self.blocks():
            plain[which] = rows
        return plain


class _Projection(torch.autograd.Function):
    """x W^T; neither pass keeps or makes all of W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: AffineWeight) -> Tensor:
        ctx.weights = weights
        flat = x.reshape(-1, x.shape[-1])
        out = flat.new_empty((len(flat), weights.shape[0]))
        for which, rows in weights.blocks():
            out[:, which] = flat @ rows.mT
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weights: AffineWeight = ctx.weights
        flat = grad.reshape(-1, grad.shape[-1])
        d_x = flat.new_zeros((len(flat), weights.shape[1]))
        for which, rows in weights.blocks():
            d_x.addmm_(flat[:, which], rows)
        return d_x.view(*grad.shape[:-1], -1), None


_project: Callable[[Tensor, AffineWeight], Tensor] = _Projection.apply


class QuantisedLinear(nn.Module):
    """As `nn.Linear`, frozen. `weight` is made plain each time it is read."""

    def __init__(self, weights: AffineWeight, bias: nn.Parameter | None):
        super().__init__()
        self.weights = weights
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        return self.weights.plain()

    def project(self, x: Tensor) -> Tensor:
        """Without the bias."""
        return _project(x, self.weights)

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(x)
        return out if self.bias is None else out + self.bias


class QuantisedEmbedding(nn.Module):
    """As `nn.Embedding`, frozen; `scale` multiplies what is looked up, as Gemma does it."""

    def __init__(self, weights: AffineWeight, scale: Tensor | None):
        super().__init__()
        self.weights = weights
        self.register_buffer("scale", scale, persistent=False)

    @property
    def weight(self) -> Tensor:
        return self.weights.plain()

    def forward(self, ids: Tensor) -> Tensor:
        found = self.weights.rows(ids)
        return found if self.scale is None else found * cast(Tensor, self.scale).to(found.dtype)


def install(model: Any, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Give a model without weights those of a quantised one's files; scales and all that is not
    rounded become `dtype`. Names are consumed from `tensors`.

    Raises UnsupportedModel for layers of other kinds, and where a weight is absent or left over.
    """
    for name in [n.removesuffix(".scales") for n in tensors if n.endswith(".scales")]:
        _replace(model, name, _quantised(model, name, tensors, dtype))
    tied = model.config.get_text_config().tie_word_embeddings
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if tied and isinstance(embedding, QuantisedEmbedding) and isinstance(head, nn.Linear):
        model.set_output_embeddings(QuantisedLinear(embedding.weights, None))
    plain = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    own = model.state_dict()
    odd = [
        (n, t.shape, own[n].shape) for n, t in plain.items() if n in own and t.shape != own[n].shape
    ]
    found = model.load_state_dict(
        {name: tensor for name, tensor in plain.items() if name not in {n for n, _, _ in odd}},
        strict=False,
        assign=True,
    )
    absent = set(found.missing_keys) - {name for name, _, _ in odd}
    if tied and isinstance(head, nn.Linear) and model.get_output_embeddings() is head:
        model.tie_weights()
        absent = {name for name in absent if not name.endswith("lm_head.weight")}
    extra = foreign(found.unexpected_keys, first_extra_layer(model.config.get_text_config()))
    require_whole(absent, extra, odd)


def num_parameters(model: nn.Module) -> int:
    """Weights, however they are stored."""
    packed = (m for m in model.modules() if isinstance(m, AffineWeight))
    return sum(p.numel() for p in model.parameters()) + sum(w.shape[0] * w.shape[1] for w in packed)


def _quantised(
    model: nn.Module, name: str, tensors: dict[str, Tensor], dtype: torch.dtype
) -> nn.Module:
    try:
        layer = model.get_submodule(name)
        words, scales, biases = (
            tensors.pop(f"{name}.{part}") for part in ("weight", "scales", "biases")
        )
    except (AttributeError, KeyError) as error:
        raise UnsupportedModel(
            f"The model cannot be loaded: its quantised layer {name[:80]} is not as expected",
            suggestion="Use the mlx engine, or the model's bfloat16 release.",
        ) from error
    rows = getattr(layer, "out_features", getattr(layer, "num_embeddings", len(words)))
    if len(words) != rows:
        require_whole((), (), [(f"{name}.weight", (len(words),), (rows,))])
    if isinstance(layer, nn.Linear):
        weights = AffineWeight(words, scales.to(dtype), biases.to(dtype), layer.in_features)
        return QuantisedLinear(weights, layer.bias)
    if isinstance(layer, nn.Embedding):
        weights = AffineWeight(words, scales.to(dtype), biases.to(dtype), layer.embedding_dim)
        return QuantisedEmbedding(weights, getattr(layer, "embed_scale", None))
    raise UnsupportedModel(
        f"The torch engine cannot compute with a quantised {type(layer).__name__}",
        suggestion="Use the mlx engine, or the model's bfloat16 release.",
    )


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
