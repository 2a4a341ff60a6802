"""LoRA and DoRA layers; `engines.adapter` says what they compute and names the papers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from forgellm.engines.adapter import LoraSettings
from forgellm.engines.layers import inside_block, layer_index, target_layers
from forgellm.engines.torch.attention import MODEL_ERRORS
from forgellm.engines.torch.quantised import QuantisedLinear

Linear: TypeAlias = nn.Linear | QuantisedLinear  # or Conv1D, of which no types are known


def plain_weight(linear: Linear) -> Tensor:
    """[out, in], which for GPT-2's Conv1D is a view of what it has as [in, out]."""
    weight: Tensor = linear.weight
    return weight.mT if isinstance(linear, Conv1D) else weight


def is_linear(layer: object) -> bool:
    """Whether a layer computes x W^T + bias. What inherits from `nn.Linear` may do more, as routers of
    experts do."""
    if type(layer) in (nn.Linear, Conv1D, QuantisedLinear):
        return True
    return isinstance(layer, nn.Linear) and _computes_linearly(layer)


@torch.no_grad()
def _computes_linearly(layer: nn.Linear) -> bool:
    x = torch.linspace(-1, 1, layer.in_features).to(layer.weight)[None, None]
    try:
        plain = F.linear(x, layer.weight, layer.bias)
        return bool(torch.allclose(layer(x), plain, rtol=1e-2, atol=1e-2))
    except MODEL_ERRORS:
        return False


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias + scale (x A) B with W frozen; keeps only x and (x A)^T for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = F.linear(rows, weight, bias)
        # What has the rank as a side is [rank, many]: CPU libraries are slower at [many, rank].
        low = lora_a.mT.to(x.dtype).contiguous() @ rows.mT
        out.addmm_(low.mT, lora_b.to(x.dtype), alpha=scale)
        ctx.save_for_backward(x, weight, lora_a, lora_b, low)
        ctx.scale = scale
        # As no view of anything, for Falcon adds to what it is given in its place.
        shape = [*x.shape[:-1], out.shape[-1]]
        return cast(Tensor, torch.ops.aten._unsafe_view(out, shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_a, lora_b, low = ctx.saved_tensors
        rows, g = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        g_low = (lora_b.to(g.dtype) @ g.mT).mul_(ctx.scale)
        d_a = (g_low @ rows).mT.to(lora_a.dtype).contiguous()
        d_b = (low @ g).to(lora_b.dtype).mul_(ctx.scale)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (g @ weight).addmm_(g_low.mT, lora_a.to(g.dtype).mT).view_as(x)
        return d_x, None, None, d_a, d_b, None


_lora_linear: Callable[..., Tensor] = _LoraLinear.apply


class LoraLinear(nn.Module):
    """A frozen linear layer with a trainable low-rank addition."""

    def __init__(
        self,
        linear: Linear,
        settings: LoraSettings,
        generator: torch.Generator,
    ):
        super().__init__()
        self.linear = linear
        self.scale = settings.scale
        self.dropout = settings.dropout
        weight = plain_weight(linear)
        out_features, in_features = weight.shape
        bound = 1 / math.sqrt(in_features)
        a = torch.empty(in_features, settings.rank).uniform_(-bound, bound, generator=generator)
        device = weight.device
        self.lora_a = nn.Parameter(a.to(device))
        self.lora_b = nn.Parameter(torch.zeros(settings.rank, out_features, device=device))
        self.m: nn.Parameter | None = None
        if settings.dora:
            self.m = nn.Parameter(weight.detach().float().norm(dim=1))

    @property
    def weight(self) -> Tensor:
        """What a plain layer in this place would have, adapter and all, for code that multiplies by it
        itself, as that of state-space layers does."""
        merged = self._merged().to(self.linear.weight.dtype)
        return merged.mT if isinstance(self.linear, Conv1D) else merged

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        linear, bias = self.linear, self.linear.bias
        if isinstance(linear, QuantisedLinear):
            plain = linear.project(x)
        elif self.m is None and not (self.dropout and self.training):
            return _lora_linear(x, plain_weight(linear), bias, self.lora_a, self.lora_b, self.scale)
        else:
            plain = F.linear(x, plain_weight(linear))
        dropped = F.dropout(x, self.dropout, self.training)
        low = dropped @ self.lora_a.to(x.dtype) @ self.lora_b.to(x.dtype)
        out = plain + self.scale * low
        if self.m is not None:
            # The norm counts as a constant in the backward pass (section 4.3 of the DoRA paper).
            norm = self.merged_direction().norm(dim=1).detach()
            out = out * (self.m / norm).to(x.dtype)
        return out if bias is None else out + bias

    def merged_direction(self) -> Tensor:
        """[out, in] float32: W + scale (A B)^T, before DoRA's magnitude."""
        return (
            plain_weight(self.linear).float() + self.scale * (self.lora_a @ self.lora_b).mT.float()
        )

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """[out, in] float32: the weight of the plain layer that computes the same."""
        return self._merged()

    def _merged(self) -> Tensor:
        weight = self.merged_direction()
        if self.m is not None:
            weight = weight * (self.m / weight.norm(dim=1).detach())[:, None]
        return weight


def add_lora(model: nn.Module, settings: LoraSettings, seed: int) -> list[str]:
    """Freeze `model`, put adapters into its target layers; returns their names, in order.

    Initial values depend on `seed` alone. Raises ConfigError if `lora_target` matches nothing.
    """
    model.requires_grad_(False)
    linears = _own_linears(model)
    names = target_layers(linears, settings.target, settings.num_layers)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, child, LoraLinear(getattr(parent, child), settings, generator))
    return names


def _own_linears(model: nn.Module) -> list[str]:
    """Linear layers whose weights are theirs alone: two adapters could not be merged into the one
    weight that some of Zamba's layers share."""
    layers = {n: m for n, m in model.named_modules(remove_duplicate=False) if is_linear(m)}
    uses = Counter(id(layer._parameters.get("weight", layer)) for layer in layers.values())
    return [
        n for n, layer in layers.items() if uses[id(layer._parameters.get("weight", layer))] == 1
    ]


def left_out(model: nn.Module) -> str:
    """What of a model's blocks LoRA has no layers for although all were meant, as a sentence; empty
    where that is nothing of weight."""
    adapted = {f"{name}.linear.weight" for name in lora_layers(model)}
    matrices = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if layer_index(name) is not None and parameter.ndim > 1 and ".lora_" not in name
    }
    absent = {name: size for name, size in matrices.items() if name not in adapted}
    if not absent:
        return ""
    kinds = sorted({inside_block(name).removesuffix(".weight") for name in absent})
    share = sum(absent.values()) / sum(matrices.values())
    return (
        f"LoRA leaves {share:.0%} of the weights in the model's layers as they are, those that are "
        f"not plain linear layers: {', '.join(kinds)}."
    )


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Replace adapted plain layers by ones that compute the same, merged in float32.

    Quantised layers keep their adapter beside them, for rounding the sum again could erase it.
    """
    for name, layer in lora_layers(model).items():
        if isinstance(layer.linear, QuantisedLinear):
            continue
        weight = plain_weight(layer.linear)
        weight.copy_(layer.merged_weight().to(weight.dtype))
        parent_name, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent_name), child, layer.linear)
