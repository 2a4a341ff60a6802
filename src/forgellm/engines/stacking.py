"""Several LoRA adapters as one of their ranks together, which adds their weighted sum exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from forgellm.engines.adapter import CONFIG_NAME, settings_beside
from forgellm.engines.adapter_arrays import Array, read_layers


def can_stack(files: Sequence[Path]) -> bool:
    """DoRA scales what it is added to, so there is no sum of such adapters. Raises UnsupportedModel."""
    return not any(settings_beside(file).dora for file in files)


def write_stacked(files: Sequence[Path], weights: Sequence[float], folder: Path) -> Path:
    """The adapters file, written with its configuration into a new `folder`."""
    ranks = [settings_beside(file).rank for file in files]
    stacked: dict[str, Array] = {}
    start = 0
    for file, weight, rank in zip(files, weights, ranks, strict=True):
        scale = np.float32(weight * settings_beside(file).scale)
        for layer, parts in read_layers(file).items():
            a, b = parts["lora_a"], parts["lora_b"]
            # A layer that an adapter lacks keeps zeros in its place.
            all_a = stacked.setdefault(f"{layer}.lora_a", _zeros(a.shape[0], sum(ranks)))
            all_b = stacked.setdefault(f"{layer}.lora_b", _zeros(sum(ranks), b.shape[1]))
            all_a[:, start : start + rank] = a
            all_b[start : start + rank] = scale * b
        start += rank
    folder.mkdir()
    parameters = {"rank": sum(ranks), "scale": 1.0, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "lora_parameters": parameters}
    (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
    save_file(stacked, folder / "adapters.safetensors")
    return folder / "adapters.safetensors"


def _zeros(rows: int, columns: int) -> Array:
    return np.zeros((rows, columns), np.float32)
