"""A checkpoint merged into its base: plain weights, tensor by tensor, and a comparison of the two."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from forgellm import hardware
from forgellm.catalog.safetensors_header import read_header
from forgellm.catalog.safety import weight_files
from forgellm.engines.adapter import LoraSettings, settings_beside
from forgellm.engines.base import Agreement
from forgellm.engines.torch import load
from forgellm.engines.torch.adapters import attach_adapter, read_adapter
from forgellm.engines.torch.lora import LoraLinear
from forgellm.errors import CheckpointCorrupt, UnsupportedModel

_INDEX = "model.safetensors.index.json"
_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FLOAT32_HEADROOM = 1.3

Change = Callable[[str, Tensor], Tensor]


class TorchFuseEngine:
    """See `engines.base.FuseEngine`. At most one file of the base is in memory at a time."""

    def fuse(
        self, model_path: Path, weights: Path, out: Path, on_progress: Callable[[float], None]
    ) -> None:
        if weights.is_dir():
            dtype = _main_dtype(model_path)
            _rewrite(weights, out, lambda _, tensor: _cast(tensor, dtype), on_progress)
            _write_config(weights, out, dtype)
        else:
            merge = _AdapterMerge(weights, model_path)
            _rewrite(model_path, out, merge, on_progress)
            _write_config(model_path, out, None)

    def agreement(
        self, model_path: Path, weights: Path, fused: Path, prompts: list[list[int]]
    ) -> Agreement:
        place = load.choose_placement(_comparison_dtype(model_path))
        is_full = weights.is_dir()
        model = load.load_model(weights if is_full else model_path, place.dtype, place.device)
        if not is_full:
            attach_adapter(model, weights)
        expected = list(_log_probs(model, prompts, place.device))
        del model
        found = _log_probs(load.load_model(fused, place.dtype, place.device), prompts, place.device)
        same, divergence, total = 0, 0.0, 0
        for ours, theirs in zip(expected, found, strict=True):
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            divergence += float((ours.exp() * (ours - theirs)).sum())
            total += len(ours)
        return Agreement(same / total, max(0.0, divergence / total), total, place.dtype_name)


class _AdapterMerge:
    """Changes the tensors that an adapter file adapts and leaves the others as they are."""

    def __init__(self, file: Path, model_path: Path) -> None:
        self._settings = settings_beside(file)
        tensors = read_adapter(file)
        layers = {name.rpartition(".")[0] for name in tensors}
        stored = [name for part in weight_files(model_path) for name in read_header(part)]
        self._layers: dict[str, dict[str, Tensor]] = {}
        for layer in layers:
            parts = ("lora_a", "lora_b", "m") if self._settings.dora else ("lora_a", "lora_b")
            if any(f"{layer}.{part}" not in tensors for part in parts):
                raise CheckpointCorrupt(f"{file.name} lacks a part of {layer}")
            name = _stored_name(layer, stored)
            self._layers[name] = {part: tensors[f"{layer}.{part}"] for part in parts}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        parts = self._layers.get(name)
        if parts is None:
            return tensor
        return _merged(name, tensor, parts, self._settings).to(tensor.dtype)


def _merged(name: str, weight: Tensor, parts: dict[str, Tensor], settings: LoraSettings) -> Tensor:
    """[out, in] float32, by the very layer that training used."""
    shape = (parts["lora_b"].shape[-1], parts["lora_a"].shape[0])
    if tuple(weight.shape) != shape or weight.dtype not in _STORED.values():
        raise UnsupportedModel(f"The adapter does not fit this model: {name}.")
    linear = nn.Linear(shape[1], shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer = LoraLinear(linear, settings, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for part, value in parts.items():
            layer.get_parameter(part).copy_(value)
    return layer.merged_weight()


def _stored_name(layer: str, stored: list[str]) -> str:
    """The tensor that holds a layer's weight; models with more than text put a prefix before it."""
    wanted = f"{layer}.weight"
    if wanted in stored:
        return wanted
    inside = wanted.removeprefix("model.")
    found = [name for name in stored if name.endswith(f".{inside}")]
    if len(found) != 1:
        raise UnsupportedModel(
            f"The adapter cannot be merged: the base has no tensor for {layer}.",
            suggestion="Use the adapter beside the base model instead.",
        )
    return found[0]


def _rewrite(folder: Path, out: Path, change: Change, on_progress: Callable[[float], None]) -> None:
    """Copy the weight files of a model, under the same names, each tensor through `change`."""
    files = weight_files(folder)
    total = sum(file.stat().st_size for file in files)
    done = 0
    for file in files:
        size = file.stat().st_size
        changed: dict[str, Tensor] = {}
        with _opened(file) as tensors:
            names = list(tensors.keys())
            for number, name in enumerate(names, 1):
                changed[name] = change(name, tensors.get_tensor(name)).contiguous()
                on_progress((done + size * number / len(names)) / total)
        save_file(changed, out / file.name, metadata={"format": "pt"})
        (out / file.name).chmod(0o644)  # safetensors lets only the owner read
        done += size
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        index["metadata"] = {"total_size": _tensor_bytes(out, files)}
        (out / _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _tensor_bytes(out: Path, files: list[Path]) -> int:
    total = 0
    for file in files:
        with open(out / file.name, "rb") as written:
            header = 8 + int.from_bytes(written.read(8), "little")
        total += (out / file.name).stat().st_size - header
    return total


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype in _STORED.values() else tensor


def _main_dtype(folder: Path) -> torch.dtype:
    """The type most of a model's weights are stored in."""
    sizes: Counter[str] = Counter()
    for file in weight_files(folder):
        for info in read_header(file).values():
            sizes[info.dtype] += info.num_bytes * (info.dtype in _STORED)
    return _STORED[max(sizes, key=lambda name: sizes[name])]


def _write_config(source: Path, out: Path, dtype: torch.dtype | None) -> None:
    config = json.loads((source / "config.json").read_text("utf-8"))
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _comparison_dtype(model_path: Path) -> str:
    """float32, whose own error does not hide one of ours, where the machine has room for it."""
    elements = sum(file.stat().st_size for file in weight_files(model_path)) / 2
    room = hardware.training_memory_bytes()
    return "float32" if elements * 4 * _FLOAT32_HEADROOM < room else "auto"


@torch.no_grad()
def _log_probs(model: Any, prompts: list[list[int]], device: torch.device) -> Iterator[Tensor]:
    """For each prompt [T, V] float32 log-probabilities of the next token."""
    model.eval()
    for prompt in prompts:
        logits = model(input_ids=torch.tensor([prompt], device=device), use_cache=False).logits
        yield logits[0].float().log_softmax(-1).cpu()


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointCorrupt(f"{file.name} cannot be read: {error}") from error
