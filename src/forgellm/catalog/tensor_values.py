"""Values of a stored tensor as float32, read without an engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forgellm.catalog.safetensors_header import TensorInfo
from forgellm.errors import UnsupportedModel

_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_rows(file: Path, tensor: TensorInfo, num_rows: int) -> NDArray[np.float32]:
    """The first rows [num_rows, ...] of a float tensor. Raises UnsupportedModel for other types."""
    if tensor.dtype not in _STORED:
        raise UnsupportedModel(f"{file.name} holds weights of the type {tensor.dtype}")
    rows = min(num_rows, tensor.shape[0])
    count = rows * (tensor.num_elements // tensor.shape[0])
    with file.open("rb") as stored:
        header_bytes = int.from_bytes(stored.read(8), "little")
        stored.seek(8 + header_bytes + tensor.start)
        values = np.fromfile(stored, _STORED[tensor.dtype], count)
    if tensor.dtype == "BF16":  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32).reshape(rows, *tensor.shape[1:])
