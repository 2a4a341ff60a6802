"""An adapter file's weights as numpy arrays, for what needs no engine: other formats, combinations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from forgellm.engines.adapter import require_finite
from forgellm.engines.merging import by_layer
from forgellm.errors import CheckpointCorrupt, UnsupportedModel

Array = NDArray[np.float32]
Parts = dict[str, Array]


def read_layers(file: Path) -> dict[str, Parts]:
    """For each adapted layer its `lora_a` [in, rank], `lora_b` [rank, out] and, for DoRA, `m` [out].

    Raises CheckpointCorrupt, and UnsupportedModel for the layers of a mixture of experts and for
    numbers like NaN.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, TypeError) as error:  # TypeError: no type that numpy has
        raise CheckpointCorrupt(f"{file.name} cannot be read: {error}") from error
    layers = by_layer(file, tensors)
    for name, parts in layers.items():
        if parts["lora_a"].ndim != 2:
            raise UnsupportedModel(
                f"{name} holds experts, whose adapters only the MLX engine uses.",
                suggestion="Publish the checkpoint instead: forgellm publish --run RUN",
            )
        for part, value in parts.items():
            require_finite(file, f"{name}.{part}", bool(np.isfinite(value).all()))
    return {
        layer: {part: value.astype(np.float32) for part, value in parts.items()}
        for layer, parts in layers.items()
    }


def weight_change(weight: Array, parts: Parts, scale: float) -> Array:
    """[out, in]: what the adapter adds to a weight [out, in]; see `engines.adapter`."""
    change = np.float32(scale) * (parts["lora_a"] @ parts["lora_b"]).T
    if "m" not in parts:
        return np.ascontiguousarray(change, np.float32)
    direction = weight + change
    length = np.linalg.norm(direction, axis=1)
    merged: Array = direction * (parts["m"] / length)[:, None]
    return merged - weight
