"""Adapter files in mlx-lm's layout, with a configuration that mlx-lm and PEFT both read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from forgellm.engines.torch.lora import LoraLinear, LoraSettings, lora_layers
from forgellm.errors import CheckpointCorrupt, UnsupportedModel

CONFIG_NAME = "adapter_config.json"


def adapter_config(
    settings: LoraSettings, layer_names: list[str], base_model: str
) -> dict[str, Any]:
    """Contents of `adapter_config.json`. `layer_names` are full module names."""
    inside_block = sorted({name.split(".layers.", 1)[-1].split(".", 1)[-1] for name in layer_names})
    blocks = {name.split(".layers.", 1)[-1].split(".", 1)[0] for name in layer_names}
    return {
        "fine_tune_type": "dora" if settings.dora else "lora",
        "num_layers": len(blocks),
        "lora_parameters": {
            "rank": settings.rank,
            "scale": settings.scale,
            "dropout": settings.dropout,
            "keys": inside_block,
        },
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_dora": settings.dora,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in inside_block}),
        "layers_to_transform": sorted(int(block) for block in blocks if block.isdigit()),
        "bias": "none",
    }


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights by file name: `<layer>.lora_a`, `.lora_b` and, for DoRA, `.m`."""
    tensors = {}
    for name, layer in lora_layers(model).items():
        for part, value in layer.named_parameters(recurse=False):
            tensors[f"{name}.{part}"] = value.detach()
    return tensors


def save_adapter(model: nn.Module, file: Path) -> None:
    tensors = {name: value.contiguous().cpu() for name, value in adapter_tensors(model).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def read_adapter(file: Path) -> dict[str, Tensor]:
    """Raises CheckpointCorrupt if the file is damaged."""
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointCorrupt(f"{file.name} cannot be read: {error}") from error
    return tensors


def copy_into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a model's adapters the values of a file. Raises UnsupportedModel if names differ."""
    own = adapter_tensors(model)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())[0]
        raise UnsupportedModel(f"The adapter does not fit this model: {odd} has no counterpart.")
    with torch.no_grad():
        for name, value in own.items():
            if value.shape != tensors[name].shape:
                raise UnsupportedModel(f"The adapter does not fit this model: shape of {name}.")
            value.copy_(tensors[name])


def attach_adapter(model: nn.Module, file: Path) -> None:
    """Put the adapter of `file` (and the `adapter_config.json` beside it) onto a plain model.

    Raises UnsupportedModel, CheckpointCorrupt.
    """
    tensors = read_adapter(file)
    layers = sorted({name.rpartition(".")[0] for name in tensors})
    known = dict(model.named_modules())
    for name in layers:
        if not isinstance(known.get(name), nn.Linear):
            raise UnsupportedModel(f"The adapter does not fit this model: it has no layer {name}.")
    settings = settings_beside(file)
    generator = torch.Generator().manual_seed(0)
    for name in layers:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, child, LoraLinear(getattr(parent, child), settings, generator))
    copy_into(model, tensors)


def settings_beside(file: Path) -> LoraSettings:
    """From the `adapter_config.json` in the file's folder. Raises UnsupportedModel."""
    try:
        config = json.loads((file.parent / CONFIG_NAME).read_text())
        parameters = config["lora_parameters"]
        rank, scale = int(parameters["rank"]), float(parameters["scale"])
        dora = config.get("fine_tune_type") == "dora"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(
            f"{CONFIG_NAME} beside the adapter is missing or unreadable.",
            suggestion="Keep adapter_config.json in the folder of the adapters file.",
        ) from error
    return LoraSettings(rank=rank, alpha=scale * rank, dora=dora)
