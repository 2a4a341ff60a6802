"""Writes the weights of a GGUF file as safetensors under their Hugging Face names.

Rows are dequantised, converted and written a few megabytes at a time.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forgellm.catalog.gguf_config import ROPE_FREQS, Architecture
from forgellm.catalog.gguf_file import GgufFile, GgufTensor, damaged
from forgellm.catalog.gguf_tensors import tensor_pairs
from forgellm.errors import UnsupportedModel

Dtype = Literal["bfloat16", "float32"]
MAX_SHARD_BYTES = 5_000_000_000
_ITEM_BYTES = {"bfloat16": 2, "float32": 4}
_HEADER_DTYPES = {"bfloat16": "BF16", "float32": "F32"}
# Results of the model's other numbers, kept by some converters.
_DERIVED = (ROPE_FREQS, ".attn_rot_embd.weight", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class PlannedTensor:
    """A weight to write: where it comes from and what the converter's changes were."""

    name: str
    source: GgufTensor
    row_order: NDArray[np.intp] | None = None
    norm_offset: float = 0.0


def plan_tensors(
    file: GgufFile, architecture: Architecture, config: dict[str, Any]
) -> list[PlannedTensor]:
    """Every weight of the model, in order. Raises UnsupportedModel if one is absent, has the
    wrong shape, or would be left over."""
    planned = []
    for pair in tensor_pairs(architecture, config):
        tensor = file.tensors.get(pair.gguf_name)
        if tensor is None:
            raise damaged(f"{pair.gguf_name} is missing")
        if tensor.shape != pair.shape:
            raise damaged(f"{pair.gguf_name} has the shape {tensor.shape} instead of {pair.shape}")
        planned.append(PlannedTensor(pair.name, tensor, pair.rows_of_file(), pair.norm_offset))
    left_over = file.tensors.keys() - {item.source.name for item in planned}
    if unknown := sorted(name for name in left_over if not name.endswith(_DERIVED)):
        raise UnsupportedModel(
            f"The GGUF file holds weights its architecture does not have: {unknown[0][:80]!r}",
            details={"tensors": [name[:80] for name in unknown[:10]]},
        )
    return planned


def total_bytes(planned: list[PlannedTensor], dtype: Dtype) -> int:
    """Size of the weights once written."""
    return sum(math.prod(item.source.shape) for item in planned) * _ITEM_BYTES[dtype]


def write_weights(
    file: GgufFile,
    planned: list[PlannedTensor],
    folder: Path,
    dtype: Dtype,
    on_bytes: Callable[[int], None],
) -> None:
    """Write `model.safetensors`, or shards of at most 5 GB and their index.

    `on_bytes` is told the size of each piece written.
    """
    shards = _shards(planned, dtype)
    if len(shards) == 1:
        _write_shard(file, shards[0], folder / "model.safetensors", dtype, on_bytes)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(file, shard, folder / name, dtype, on_bytes)
        weight_map |= {item.name: name for item in shard}
    index = {"metadata": {"total_size": total_bytes(planned, dtype)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), "utf-8")


def _shards(planned: list[PlannedTensor], dtype: Dtype) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    for item in planned:
        if shards[-1] and total_bytes([*shards[-1], item], dtype) > MAX_SHARD_BYTES:
            shards.append([])
        shards[-1].append(item)
    return shards


def _write_shard(
    file: GgufFile,
    shard: list[PlannedTensor],
    path: Path,
    dtype: Dtype,
    on_bytes: Callable[[int], None],
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for item in shard:
        end = position + math.prod(item.source.shape) * _ITEM_BYTES[dtype]
        header[item.name] = {
            "dtype": _HEADER_DTYPES[dtype],
            "shape": item.source.shape,
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors keeps the data aligned
    with path.open("wb") as output:
        output.write(len(text).to_bytes(8, "little") + text)
        for item in shard:
            for rows in file.read(item.source, item.row_order):
                if item.norm_offset:
                    rows = rows - np.float32(item.norm_offset)
                on_bytes(output.write(_encode(rows, dtype)))
        output.flush()
        os.fsync(output.fileno())


def _encode(rows: NDArray[np.float32], dtype: Dtype) -> bytes:
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    return (to_bfloat16(rows) if dtype == "bfloat16" else rows).tobytes()


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16 of each value, ties to even, as its 16 bits."""
    bits = values.view(np.uint32)
    nearest = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    quiet_nan = (bits >> 16) | 0x0040  # rounding could turn a NaN into infinity
    return np.where(np.isnan(values), quiet_nan, nearest).astype(np.uint16)
