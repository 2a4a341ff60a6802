"""A torch model's adapters from and to files in mlx-lm's layout."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forgellm.engines.adapter import require_finite, require_fit, settings_beside
from forgellm.engines.torch.lora import LoraLinear, is_linear, lora_layers
from forgellm.engines.torch.sharding import fill, whole
from forgellm.errors import CheckpointCorrupt, UnsupportedModel


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights by file name: `<layer>.lora_a`, `.lora_b` and, for DoRA, `.m`."""
    tensors = {}
    for name, layer in lora_layers(model).items():
        for part, value in layer.named_parameters(recurse=False):
            tensors[f"{name}.{part}"] = value.detach()
    return tensors


def save_adapter(model: nn.Module, file: Path | None) -> None:
    """All processes take part; the one that has a file writes it."""
    own = adapter_tensors(model)
    tensors = {name: whole(value).contiguous().cpu() for name, value in own.items()}
    if file is not None:
        save_file(tensors, file, metadata={"format": "pt"})


def read_adapter(file: Path) -> dict[str, Tensor]:
    """Raises CheckpointCorrupt if the file is damaged, UnsupportedModel for numbers like NaN."""
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointCorrupt(f"{file.name} cannot be read: {error}") from error
    for name, value in tensors.items():
        require_finite(file, name, bool(value.isfinite().all()))
    return tensors


def copy_into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a model's adapters the values of a file. Raises UnsupportedModel if names differ."""
    own = adapter_tensors(model)
    require_fit(
        {name: tuple(value.shape) for name, value in own.items()},
        {name: tuple(value.shape) for name, value in tensors.items()},
    )
    for name, value in own.items():
        fill(value, tensors[name])


def attach_adapter(model: nn.Module, file: Path) -> None:
    """Put the adapter of `file` (and the `adapter_config.json` beside it) onto a plain model.

    Raises UnsupportedModel, CheckpointCorrupt.
    """
    tensors = read_adapter(file)
    settings = settings_beside(file)
    layers = sorted({name.rpartition(".")[0] for name in tensors})
    known = dict(model.named_modules())
    for name in layers:
        if not is_linear(known.get(name)):
            raise UnsupportedModel(f"The adapter does not fit this model: it has no layer {name}.")
    generator = torch.Generator().manual_seed(0)
    for name in layers:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, child, LoraLinear(getattr(parent, child), settings, generator))
    copy_into(model, tensors)
