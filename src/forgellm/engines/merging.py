"""What it takes to merge a checkpoint into its base, whichever engine computes it: files and names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forgellm import hardware
from forgellm.catalog.facts import read_facts
from forgellm.catalog.safetensors_header import read_header
from forgellm.catalog.safety import weight_files
from forgellm.engines.base import Agreement
from forgellm.engines.layers import INPUTS_FIRST, inside_block, layer_index
from forgellm.errors import CheckpointCorrupt, UnsupportedModel

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_INDEX = "model.safetensors.index.json"
_FLOAT32_HEADROOM = 1.3

Progress = Callable[[float], None]
Tensor = TypeVar("Tensor")


def rewrite_weights(
    folder: Path,
    out: Path,
    rewrite: Callable[[Path, Path, Progress], None],
    on_progress: Progress,
) -> None:
    """Write each weight file of a model anew under its name: `rewrite(file, target, progress)`."""
    files = weight_files(folder)
    total = sum(file.stat().st_size for file in files)
    done = 0
    for file in files:
        size = file.stat().st_size
        rewrite(file, out / file.name, _part_of(on_progress, done / total, size / total))
        (out / file.name).chmod(0o644)  # safetensors lets only the owner read
        done += size
    if (folder / _INDEX).is_file():
        _write_index(out, [file.name for file in files])


def _part_of(on_progress: Progress, start: float, share: float) -> Progress:
    return lambda done: on_progress(start + share * done)


def _write_index(out: Path, names: list[str]) -> None:
    headers = {name: read_header(out / name) for name in names}
    index = {
        "metadata": {"total_size": sum(t.num_bytes for h in headers.values() for t in h.values())},
        "weight_map": {tensor: name for name, header in headers.items() for tensor in header},
    }
    (out / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_config(source: Path, out: Path, dtype: str | None) -> None:
    """The model's `config.json`; with `dtype`, for weights that are now plain and of that type."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    if dtype is not None:
        for key in ("torch_dtype", "quantization", "quantization_config"):
            config.pop(key, None)
        config["dtype"] = dtype
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def main_dtype(folder: Path) -> str:
    """The type most of a model's plain weights are stored in."""
    sizes: Counter[str] = Counter()
    for file in weight_files(folder):
        for info in read_header(file).values():
            sizes[info.dtype] += info.num_bytes * (info.dtype in DTYPES)
    return DTYPES[max(sizes, key=lambda name: sizes[name])]


def adapter_parts(
    file: Path, tensors: Mapping[str, Tensor], model_path: Path
) -> dict[str, dict[str, Tensor]]:
    """For each weight of the base that an adapter file changes: its `lora_a`, `lora_b`, perhaps `m`.

    Raises CheckpointCorrupt, UnsupportedModel.
    """
    return by_stored_name(by_layer(file, tensors), model_path)


def by_layer(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """An adapter file's tensors as layer -> part -> tensor. Raises CheckpointCorrupt."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        layers.setdefault(layer, {})[part] = tensor
    for layer, parts in layers.items():
        if not {"lora_a", "lora_b"} <= parts.keys():
            raise CheckpointCorrupt(f"{file.name} lacks a part of {layer}")
    return layers


def by_stored_name(
    layers: dict[str, dict[str, Tensor]], model_path: Path
) -> dict[str, dict[str, Tensor]]:
    """The same by the name of the base's weight. Raises UnsupportedModel."""
    stored = [name for part in weight_files(model_path) for name in read_header(part)]
    return {_stored_name(layer, stored): parts for layer, parts in layers.items()}


def is_renamed(file: Path, tensors: Mapping[str, Tensor], model_path: Path) -> bool:
    """Whether a model's files have other names than the layers of an adapter file, so that only the
    library that loads them can say which belong together."""
    stored = [name for part in weight_files(model_path) for name in read_header(part)]
    return any(not _stored_names(layer, stored) for layer in by_layer(file, tensors))


def not_stored(names: Iterable[str], model_path: Path) -> list[str]:
    """Those weights of a model in memory that its files hold under another name, or otherwise."""
    stored = [name for part in weight_files(model_path) for name in read_header(part)]
    known = set(stored)
    weights = (name.removesuffix(".weight") for name in names if name not in known)
    return [name for name in weights if not _stored_names(name, stored)]


def _stored_name(layer: str, stored: list[str]) -> str:
    """The tensor that holds a layer's weight. Raises UnsupportedModel."""
    found = _stored_names(layer, stored)
    if len(found) != 1:
        raise UnsupportedModel(
            f"The adapter cannot be merged: the base has no tensor for {layer}.",
            suggestion="Use the adapter beside the base model instead.",
        )
    return found[0]


def _stored_names(layer: str, stored: list[str]) -> list[str]:
    """The tensors that may hold a layer's weight. What stands before the blocks differs: GPT-2's files
    begin with them, and those of models with more than text have other parts beside them."""
    wanted = f"{layer}.weight"
    if wanted in stored:
        return [wanted]
    place = layer_index(wanted), inside_block(wanted)
    found = [name for name in stored if (layer_index(name), inside_block(name)) == place]
    return [n for n in found if "language_model" in n] if len(found) > 1 else found


def stores_inputs_first(model_path: Path) -> bool:
    """Whether a model's files have the weights of linear layers as [in, out]."""
    config = json.loads((model_path / "config.json").read_text("utf-8"))
    return config.get("model_type") in INPUTS_FIRST


def require_shape(name: str, shape: tuple[int, ...], parts: dict[str, Any]) -> None:
    """Raises UnsupportedModel unless a weight [out, in] is what the adapter's parts were made for."""
    if shape != (parts["lora_b"].shape[-1], parts["lora_a"].shape[0]):
        raise UnsupportedModel(f"The adapter does not fit this model: {name}.")


def comparison_dtype(model_path: Path) -> str:
    """float32, whose own error does not hide one of ours, where the machine has room for it; else
    bfloat16."""
    config = json.loads((model_path / "config.json").read_text("utf-8"))
    elements = read_facts(model_path, config).num_parameters
    room = hardware.training_memory_bytes()
    return "float32" if elements * 4 * _FLOAT32_HEADROOM < room else "bfloat16"


def agreement_of(
    expected: Iterable[NDArray[np.float32]], found: Iterable[NDArray[np.float32]], dtype: str
) -> Agreement:
    """Compare two models by their [T, V] log-probabilities of the next token, prompt by prompt."""
    same, divergence, total = 0, 0.0, 0
    for ours, theirs in zip(expected, found, strict=True):
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        divergence += float((np.exp(ours) * (ours - theirs)).sum())
        total += len(ours)
    return Agreement(same / total, max(0.0, divergence / total), total, dtype)
