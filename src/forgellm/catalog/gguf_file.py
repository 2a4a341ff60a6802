"""A GGUF file: its metadata, its tensors' places, and dequantised rows of them.

`gguf.GGUFReader` trusts the lengths in a file, so that a hundred bytes can keep it busy for ever.
Here every length is held against the bytes that are left before it is used.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from numpy.typing import NDArray

from forgellm.errors import UnsupportedModel

_SCALARS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip
_BLOCK_ELEMENTS = 4_000_000  # dequantised at a time: 16 MB of float32


@dataclass(frozen=True)
class GgufTensor:
    """Attributes:
    shape: rows first, as numpy and safetensors have it (GGUF stores it reversed).
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    num_bytes: int


class GgufFile:
    """Open file; the weights stay on disk until `read` asks for them. Raises UnsupportedModel."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            try:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise UnsupportedModel("The file is empty") from None
        try:
            self._parse()
        except (struct.error, ValueError, KeyError, OverflowError) as error:
            raise damaged("its header does not fit the file") from error

    def _parse(self) -> None:
        cursor = _Cursor(self._bytes)
        if cursor.take(4) != b"GGUF":
            raise UnsupportedModel("The file is not in GGUF format")
        if (version := cursor.scalar("I")) not in (2, 3):
            raise UnsupportedModel(
                f"GGUF version {version} is not supported",
                suggestion="Versions 2 and 3, little-endian, are.",
            )
        num_tensors, num_entries = cursor.scalar("Q"), cursor.scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(cursor.bounded(num_entries, 13)):
            key = cursor.string()
            self.metadata[key] = cursor.value(GGUFValueType(cursor.scalar("I")))
        headers = [_tensor_header(cursor) for _ in range(cursor.bounded(num_tensors, 24))]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise ValueError("alignment")
        data_start = -(-cursor.position // alignment) * alignment
        self.tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in headers:
            num_bytes = _num_bytes(shape, kind)
            if name in self.tensors or data_start + offset + num_bytes > len(self._bytes):
                raise damaged(f"the weights of {name[:80]!r} are not all there")
            self.tensors[name] = GgufTensor(name, shape, kind, data_start + offset, num_bytes)

    def read(
        self, tensor: GgufTensor, row_order: NDArray[np.intp] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """The tensor as float32, a block of rows at a time; `row_order` picks the rows.

        Quantisation blocks lie along rows, so that whole rows can be reordered while packed.
        """
        columns = tensor.shape[-1]
        if len(tensor.shape) == 1 and row_order is not None:
            columns = 1  # a bias: each of its numbers belongs to one row of the weight
        num_rows = math.prod(tensor.shape) // columns
        packed = np.frombuffer(self._bytes, np.uint8, tensor.num_bytes, tensor.start)
        packed = packed.reshape(num_rows, -1)
        step = max(1, _BLOCK_ELEMENTS // columns)
        for start in range(0, num_rows, step):
            rows = (
                slice(start, start + step) if row_order is None else row_order[start : start + step]
            )
            try:
                yield dequantize(np.ascontiguousarray(packed[rows]), tensor.kind)
            except NotImplementedError:
                raise UnsupportedModel(
                    f"Weights of type {tensor.kind.name} cannot be read",
                    suggestion="Use a GGUF in Q8_0, Q4_K_M, F16, BF16 or another common type.",
                ) from None


def damaged(reason: str) -> UnsupportedModel:
    """The one form in which a malformed file is reported."""
    return UnsupportedModel(
        f"The GGUF file is damaged: {reason}", suggestion="Download the file again."
    )


class _Cursor:
    """Reads forward through the header; whatever would pass the end raises ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0

    def take(self, num_bytes: int) -> bytes:
        start, self.position = self.position, self.position + self.bounded(num_bytes, 1)
        return self.data[start : self.position]

    def bounded(self, count: int, bytes_each: int) -> int:
        """`count`, if so many items can still follow."""
        if count * bytes_each > len(self.data) - self.position:
            raise ValueError("past the end")
        return count

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8")

    def value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind != GGUFValueType.ARRAY:
            return self.scalar(_SCALARS[kind])
        item_kind, count = GGUFValueType(self.scalar("I")), self.scalar("Q")
        if item_kind == GGUFValueType.STRING:
            return [self.string() for _ in range(self.bounded(count, 8))]
        item = "<" + _SCALARS[item_kind]  # nothing we read keeps arrays of arrays
        num_bytes = self.bounded(count, struct.calcsize(item)) * struct.calcsize(item)
        return [value for (value,) in struct.iter_unpack(item, self.take(num_bytes))]


def _tensor_header(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name = cursor.string()
    num_dims = cursor.scalar("I")
    if not 1 <= num_dims <= 4:
        raise ValueError("dimensions")
    shape = tuple(reversed([cursor.scalar("Q") for _ in range(num_dims)]))
    return name, shape, GGMLQuantizationType(cursor.scalar("I")), cursor.scalar("Q")


def _num_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    block_elements, block_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block_elements:
        raise ValueError("shape")
    return int(math.prod(shape) // block_elements * block_bytes)
