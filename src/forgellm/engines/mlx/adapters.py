"""An MLX model's adapters from and to files, on mlx-lm's own adapter layers."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

from forgellm.engines.adapter import LoraSettings, require_finite, require_fit, settings_beside
from forgellm.engines.layers import inside_block, layer_index, target_layers
from forgellm.engines.mlx.tensor_files import read_tensors, save_tensors
from forgellm.errors import UnsupportedModel

_LINEAR = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
_PARTS = frozenset({"lora_a", "lora_b", "m"})


def add_lora(model: nn.Module, settings: LoraSettings, seed: int) -> list[str]:
    """Freeze `model`, put adapters into its target layers; returns their names, in order.

    Initial values depend on `seed` alone. Raises ConfigError if `lora_target` matches nothing.
    """
    model.freeze()
    linears = [name for name, layer in model.named_modules() if isinstance(layer, _LINEAR)]
    names = sorted(target_layers(linears, settings.target, settings.num_layers), key=_order)
    mx.random.seed(seed)
    _adapt(model, names, settings)
    return names


def adapter_tensors(model: nn.Module) -> dict[str, mx.array]:
    """The adapter's weights by file name: `<layer>.lora_a`, `.lora_b` and, for DoRA, `.m`."""
    parameters = tree_flatten(model.parameters())
    return {name: value for name, value in parameters if name.rpartition(".")[2] in _PARTS}


def save_adapter(model: nn.Module, file: Path) -> None:
    save_tensors(file, adapter_tensors(model))


def read_adapter(file: Path) -> dict[str, mx.array]:
    """Raises CheckpointCorrupt if the file is damaged, UnsupportedModel for numbers like NaN."""
    tensors = read_tensors(file)
    for name, value in tensors.items():
        require_finite(file, name, bool(mx.isfinite(value).all()))
    return tensors


def copy_into(model: nn.Module, tensors: dict[str, mx.array]) -> None:
    """Give a model's adapters the values of a file. Raises UnsupportedModel if names differ."""
    own = adapter_tensors(model)
    require_fit(
        {name: tuple(value.shape) for name, value in own.items()},
        {name: tuple(value.shape) for name, value in tensors.items()},
    )
    float32 = {name: value.astype(mx.float32) for name, value in tensors.items()}
    model.load_weights(list(float32.items()), strict=False)


def attach_adapter(model: nn.Module, file: Path) -> None:
    """Put the adapter of `file` (and the `adapter_config.json` beside it) onto a plain model.

    Raises UnsupportedModel, CheckpointCorrupt.
    """
    tensors = _as_named_here(model, read_adapter(file))
    settings = settings_beside(file)
    layers = sorted({name.rpartition(".")[0] for name in tensors}, key=_order)
    known = dict(model.named_modules())
    for name in layers:
        if not isinstance(known.get(name), _LINEAR):
            raise UnsupportedModel(f"The adapter does not fit this model: it has no layer {name}.")
    _adapt(model, layers, settings)
    copy_into(model, tensors)


def _as_named_here(model: nn.Module, tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    """An adapter's tensors under the names of this model's layers: what stands before the blocks is
    another with transformers, for GPT-2 for one."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, _LINEAR)]
    own = {(layer_index(name), inside_block(name)): name for name in names}

    def renamed(tensor: str) -> str:
        layer, _, part = tensor.rpartition(".")
        return f"{own.get((layer_index(layer), inside_block(layer)), layer)}.{part}"

    return {renamed(name): value for name, value in tensors.items()}


def merge_lora(model: nn.Module) -> None:
    """Replace adapted plain layers by ones that compute the same, merged in float32.

    Quantised layers keep their adapter beside them: plain weights would take several times the
    memory, and quantising the sum again could round a small adapter away.
    """
    merged = []
    for name, layer in model.named_modules():
        if isinstance(layer, (LoRALinear, DoRALinear)) and type(layer.linear) is nn.Linear:
            weight = layer.linear.weight
            parts = {part: layer[part] for part in _PARTS if part in layer}
            layer.linear.weight = merged_weight(weight, parts, layer.scale).astype(weight.dtype)
            merged.append((name, layer.linear))
    model.update_modules(tree_unflatten(merged))
    mx.eval(model.parameters())


def compute_in(model: nn.Module, dtype: mx.Dtype) -> None:
    """Cast the adapters that stay beside quantised layers, or each would widen what it is given to
    its own float32. DoRA's norms of whole weights need that, and keep it."""
    for layer in model.modules():
        if isinstance(layer, (LoRALinear, LoRASwitchLinear)):
            layer.set_dtype(dtype)


def merged_weight(weight: mx.array, parts: dict[str, mx.array], scale: float) -> mx.array:
    """[out, in] float32: the weight of the plain layer that computes the same."""
    merged = weight.astype(mx.float32) + scale * (parts["lora_a"] @ parts["lora_b"]).T
    if "m" in parts:
        merged = merged * (parts["m"] / mx.linalg.norm(merged, axis=1))[:, None]
    return merged


def _adapt(model: nn.Module, names: list[str], settings: LoraSettings) -> None:
    layers = dict(model.named_modules())
    adapted = [(name, _adapted(layers[name], settings)) for name in names]
    model.update_modules(tree_unflatten(adapted))


def _adapted(layer: nn.Module, settings: LoraSettings) -> nn.Module:
    is_switch = isinstance(layer, (SwitchLinear, QuantizedSwitchLinear))
    if settings.dora and is_switch:
        raise UnsupportedModel(
            "DoRA is not available for the expert layers of this model.",
            suggestion="Use fine_tune_type lora.",
        )
    plain = LoRASwitchLinear if is_switch else LoRALinear
    kind = DoRALinear if settings.dora else plain
    return kind.from_base(layer, settings.rank, settings.dropout, settings.scale)


def _order(name: str) -> tuple[int, str]:
    return layer_index(name) or 0, name
