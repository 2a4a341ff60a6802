"""Values of stored tensors as float32, some rows at a time, and back; read without an engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgellm.catalog.gguf_weights import to_bfloat16
from forgellm.catalog.safetensors_header import TensorInfo
from forgellm.errors import UnsupportedModel

_BLOCK_ELEMENTS = 1_000_000  # converted at a time: 4 MB of float32
_BLOCK_BYTES = 16_000_000
_STORED: dict[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
FLOATS = frozenset(_STORED)


def data_start(file: Path) -> int:
    """Where the header of a safetensors file ends, from which tensors' places count."""
    with file.open("rb") as opened:
        return 8 + int.from_bytes(opened.read(8), "little")


def float_blocks(file: Path, info: TensorInfo) -> Iterator[NDArray[np.float32]]:
    """Blocks [n, ...] of the rows of a tensor whose dtype is one of FLOATS, in order."""
    row_elements = math.prod(info.shape[1:])
    step = max(1, _BLOCK_ELEMENTS // max(1, row_elements))
    with file.open("rb") as opened:
        opened.seek(data_start(file) + info.start)
        for start in range(0, info.shape[0], step):
            rows = min(step, info.shape[0] - start)
            stored = np.fromfile(opened, _STORED[info.dtype], rows * row_elements)
            yield _float32(stored).reshape(rows, *info.shape[1:])


def read_rows(file: Path, info: TensorInfo, num_rows: int) -> NDArray[np.float32]:
    """The first rows [num_rows, ...] of a float tensor. Raises UnsupportedModel for other types."""
    if info.dtype not in FLOATS:
        raise UnsupportedModel(f"{file.name} holds weights of the type {info.dtype}")
    return np.concatenate(list(float_blocks(file, first_rows(info, num_rows))))


def first_rows(info: TensorInfo, num_rows: int) -> TensorInfo:
    """The place of the first rows alone."""
    rows = min(num_rows, info.shape[0])
    end = info.start + info.num_bytes // info.shape[0] * rows
    return TensorInfo(info.dtype, (rows, *info.shape[1:]), info.start, end)


def byte_blocks(file: Path, info: TensorInfo) -> Iterator[bytes]:
    """A tensor of any type as it is stored."""
    with file.open("rb") as opened:
        opened.seek(data_start(file) + info.start)
        left = info.num_bytes
        while left:
            block = opened.read(min(left, _BLOCK_BYTES))
            left -= len(block)
            yield block


def encode(values: NDArray[np.float32], dtype: str) -> bytes:
    """As a tensor of `dtype`, one of FLOATS, is stored."""
    if dtype == "BF16":
        return to_bfloat16(np.ascontiguousarray(values)).tobytes()
    return values.astype(_STORED[dtype]).tobytes()


def _float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    if stored.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)
