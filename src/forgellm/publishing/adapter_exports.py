"""A checkpoint's adapter alone, in the files of PEFT, mlx-lm and llama.cpp.

In memory is the adapter, which is small beside its model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from forgellm.catalog import ModelFolder
from forgellm.catalog.gguf_export_config import export_config
from forgellm.catalog.gguf_tensors import tensor_pairs
from forgellm.engines.adapter import CONFIG_NAME, settings_beside
from forgellm.engines.adapter_arrays import read_layers
from forgellm.engines.layers import INPUTS_FIRST, inside_block, layer_index
from forgellm.engines.merging import by_stored_name
from forgellm.errors import UnsupportedModel

_PEFT_FILE = "adapter_model.safetensors"
_PEFT_PARTS = {
    "lora_a": "lora_A.weight",
    "lora_b": "lora_B.weight",
    "m": "lora_magnitude_vector",
}


def write_peft(weights: Path, base_name: str, base: ModelFolder, out: Path) -> list[str]:
    """A folder for `peft.PeftModel.from_pretrained(model, folder)`; the names of its files.

    PEFT keeps both factors transposed: `lora_A` [rank, in], `lora_B` [out, rank].
    Raises CheckpointCorrupt, UnsupportedModel.
    """
    layers, settings = read_layers(weights), settings_beside(weights)
    tensors = {
        f"base_model.model.{layer}.{_PEFT_PARTS[part]}": np.ascontiguousarray(value.T)
        for layer, parts in layers.items()
        for part, value in parts.items()
    }
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": settings.rank,
        "lora_alpha": _whole(settings.alpha),
        "lora_dropout": 0.0,
        "use_dora": settings.dora,
        "target_modules": sorted({inside_block(layer) for layer in layers}),
        "bias": "none",
        "fan_in_fan_out": base.config.get("model_type") in INPUTS_FIRST,
        "inference_mode": True,
    }
    blocks = {index for layer in layers if (index := layer_index(layer)) is not None}
    if blocks != set(range(base.facts.num_layers or 0)):
        config["layers_to_transform"] = sorted(blocks)
    (out / CONFIG_NAME).write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(tensors, out / _PEFT_FILE, metadata={"format": "pt"})
    (out / _PEFT_FILE).chmod(0o644)  # safetensors lets only the owner read
    return [CONFIG_NAME, _PEFT_FILE]


def write_mlx(weights: Path, base_name: str, out: Path) -> list[str]:
    """A folder for `mlx_lm.generate --adapter-path`, whose layout checkpoints have already."""
    config = json.loads((weights.parent / CONFIG_NAME).read_text("utf-8"))
    config["base_model_name_or_path"] = base_name
    (out / CONFIG_NAME).write_text(json.dumps(config, indent=2), encoding="utf-8")
    shutil.copyfile(weights, out / "adapters.safetensors")
    return [CONFIG_NAME, "adapters.safetensors"]


def write_gguf_lora(weights: Path, name: str, base: ModelFolder, out: Path) -> list[str]:
    """A file for `llama-cli --lora`, beside a GGUF of the base model.

    As llama.cpp's convert_lora_to_gguf.py has it: `lora_a` [rank, in] and `lora_b` [out, rank],
    whose rows are in the order that the base's rows have there; scaled by alpha / rank.
    Raises CheckpointCorrupt, UnsupportedModel.
    """
    settings = settings_beside(weights)
    if settings.dora:
        raise UnsupportedModel(
            "llama.cpp has no DoRA",
            suggestion="Publish the checkpoint and export that model as GGUF.",
        )
    described = export_config(base.config)
    layers = by_stored_name(read_layers(weights), base.path)
    pairs = {pair.name: pair for pair in tensor_pairs(described.architecture, described.config)}
    writer = gguf.GGUFWriter(out / f"{name}-lora.gguf", described.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, settings.alpha)
    for stored, parts in sorted(layers.items()):
        if (pair := pairs.get(stored)) is None:
            raise UnsupportedModel(f"A GGUF file has no place for an adapter of {stored}")
        b = parts["lora_b"].T
        order = pair.rows_of_model()
        writer.add_tensor(f"{pair.gguf_name}.lora_a", np.ascontiguousarray(parts["lora_a"].T))
        writer.add_tensor(
            f"{pair.gguf_name}.lora_b", np.ascontiguousarray(b if order is None else b[order])
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [f"{name}-lora.gguf"]


def _whole(alpha: float) -> int | float:
    """Some readers take only a whole number, which it nearly always is."""
    return int(alpha) if alpha.is_integer() else alpha
