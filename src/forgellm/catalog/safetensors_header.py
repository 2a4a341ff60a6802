"""The header of a `.safetensors` file: read and checked without loading a single weight."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgellm.errors import UnsupportedModel

MAX_HEADER_BYTES = 100_000_000
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's place in a file; `start` and `end` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of the file. Raises UnsupportedModel if header and file do not fit together."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
                raise _damaged(path, "its header is longer than the file")
            header = json.loads(file.read(header_bytes))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    except OSError as error:
        raise _damaged(path, "it cannot be read") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a table")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, entry) for name, entry in header.items()}
    _check_layout(path, tensors, file_bytes - 8 - header_bytes)
    return tensors


def _tensor(path: Path, entry: Any) -> TensorInfo:
    try:
        start, end = entry["data_offsets"]
        tensor = TensorInfo(entry["dtype"], tuple(entry["shape"]), start, end)
        numbers = (*tensor.shape, start, end)
        valid = all(type(number) is int and number >= 0 for number in numbers)
        valid = valid and tensor.num_elements * BITS[tensor.dtype] == tensor.num_bytes * 8
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise _damaged(path, "a tensor's shape, type and size disagree")
    return tensor


def _check_layout(path: Path, tensors: dict[str, TensorInfo], data_bytes: int) -> None:
    position = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            raise _damaged(path, "its tensors overlap or leave gaps")
        position = tensor.end
    if position != data_bytes:
        raise _damaged(path, f"it should hold {position} bytes of weights but holds {data_bytes}")


def _damaged(path: Path, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path.name} is damaged: {reason}",
        suggestion="Download or import the model again.",
        details={"file": path.name},
    )
