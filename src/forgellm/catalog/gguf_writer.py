"""Writes a GGUF file from a model's safetensors files, a few megabytes at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from numpy.typing import NDArray

from forgellm.catalog.gguf_config import ROPE_FREQS
from forgellm.catalog.gguf_export_config import ExportConfig
from forgellm.catalog.gguf_tensors import TensorPair, tensor_pairs
from forgellm.catalog.safetensors_header import TensorInfo, read_header
from forgellm.catalog.safety import weight_files
from forgellm.errors import UnsupportedModel

_BLOCK_ELEMENTS = 4_000_000  # converted at a time: 16 MB of float32
_PLAIN = ("F32", "F16", "BF16")
# The embedding and the output are kept at least this fine, as llama-quantize keeps them finer too.
_ENDS = ("token_embd.weight", "output.weight")
_FINE = GGMLQuantizationType.Q8_0
_QUANTISATION_VERSION = 2
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def writable_types() -> list[str]:
    """What the `gguf` package can make of numbers, the plain types first."""
    row = np.zeros((1, 256), np.float32)  # a whole block of every type
    found = list(_PLAIN)
    for kind in GGMLQuantizationType:
        try:
            quantize(row, kind)
        except NotImplementedError:
            continue
        if kind.name not in _PLAIN:
            found.append(kind.name)
    return found


@dataclass(frozen=True)
class _Rows:
    """A tensor that `GGUFWriter.write_tensor_data` has write itself, block by block."""

    source: _StoredTensor
    pair: TensorPair
    kind: GGMLQuantizationType
    nbytes: int

    def tofile(self, file: IO[bytes]) -> None:
        for rows in self.source.rows(self.pair.rows_of_model()):
            file.write(quantize(rows + np.float32(self.pair.norm_offset), self.kind).tobytes())


class _StoredTensor:
    """A tensor in a safetensors file. Raises UnsupportedModel for one that is not of plain numbers."""

    def __init__(
        self, file: Path, info: TensorInfo, data_start: int, shape: tuple[int, ...]
    ) -> None:
        if info.shape != shape or info.dtype not in _DTYPES:
            raise UnsupportedModel(
                f"A weight in {file.name} is {info.dtype}{list(info.shape)} instead of plain "
                f"numbers {list(shape)}",
                suggestion="Export a model whose weights are float32, float16 or bfloat16.",
            )
        self._file, self._info, self._start = file, info, data_start + info.start

    def rows(self, order: NDArray[np.intp] | None) -> Iterator[NDArray[np.float32]]:
        """float32 [rows, columns] blocks, or [n] of a vector; `order` picks the rows."""
        shape = self._info.shape
        stored = np.memmap(self._file, _DTYPES[self._info.dtype], "r", self._start, shape)
        step = max(1, _BLOCK_ELEMENTS // math.prod(shape[1:]))
        for start in range(0, shape[0], step):
            block = (
                stored[start : start + step]
                if order is None
                else stored[order[start : start + step]]
            )
            yield _float32(np.asarray(block))


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


@dataclass(frozen=True)
class GgufPlan:
    """The tensors of a file to be written, in order, with their types."""

    described: ExportConfig
    tensors: list[tuple[TensorPair, GGMLQuantizationType]]
    kind: GGMLQuantizationType

    @property
    def num_bytes(self) -> int:
        return sum(_num_bytes(pair.shape, kind) for pair, kind in self.tensors)


def plan_gguf(described: ExportConfig, kind: GGMLQuantizationType) -> GgufPlan:
    """`kind` is the type of the matrices; vectors are float32."""
    pairs = tensor_pairs(described.architecture, described.config)
    return GgufPlan(described, [(pair, _kind_of(pair, kind)) for pair in pairs], kind)


def _kind_of(pair: TensorPair, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(pair.shape) == 1:
        return GGMLQuantizationType.F32
    if pair.gguf_name in _ENDS and bits_of(kind) < bits_of(_FINE):
        kind = _FINE
    block, _ = GGML_QUANT_SIZES[kind]
    return kind if pair.shape[-1] % block == 0 else GGMLQuantizationType.F16


def bits_of(kind: GGMLQuantizationType) -> float:
    """Of a weight, its share of the block's scales included."""
    block, num_bytes = GGML_QUANT_SIZES[kind]
    return float(8 * num_bytes / block)


def _num_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    block, num_bytes = GGML_QUANT_SIZES[kind]
    return int(math.prod(shape) // block * num_bytes)


def write_gguf(
    plan: GgufPlan,
    model: Path,
    tokenizer: dict[str, Any],
    name: str,
    file: Path,
    on_progress: Callable[[float], None],
) -> None:
    """Write `file`. `tokenizer` is the metadata that `gguf_export_tokenizer` makes.

    Memory is bounded by a block of rows, whatever the model's size. Raises UnsupportedModel,
    OSError.
    """
    sources = _sources(model, plan)
    described = plan.described
    writer = GGUFWriter(file, described.name)
    writer.add_name(name)
    writer.add_file_type(_file_type(plan.kind))
    writer.add_quantization_version(_QUANTISATION_VERSION)
    for key, value in {**described.metadata, **tokenizer}.items():
        _add(writer, key, value)
    divisors = described.rope_divisors
    if divisors is not None:
        writer.add_tensor_info(ROPE_FREQS, divisors.shape, divisors.dtype, divisors.nbytes)
    for pair, kind in plan.tensors:
        writer.add_tensor_info(
            pair.gguf_name, pair.shape, np.dtype(np.float32), _num_bytes(pair.shape, kind), kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    done, total = 0, plan.num_bytes
    for (pair, kind), source in zip(plan.tensors, sources, strict=True):
        rows = _Rows(source, pair, kind, _num_bytes(pair.shape, kind))
        writer.write_tensor_data(rows)
        done += rows.nbytes
        on_progress(done / total)
    writer.flush()
    writer.close()


def _file_type(kind: GGMLQuantizationType) -> int:
    names = (f"MOSTLY_{kind.name}", f"MOSTLY_{kind.name}_MOE", "ALL_F32")
    return next(int(LlamaFileType[name]) for name in names if name in LlamaFileType.__members__)


def _sources(model: Path, plan: GgufPlan) -> list[_StoredTensor]:
    """Where each tensor of the plan is read from, in order. Raises UnsupportedModel."""
    stored: dict[str, tuple[Path, TensorInfo, int]] = {}
    for file in weight_files(model):
        with file.open("rb") as opened:
            data_start = 8 + int.from_bytes(opened.read(8), "little")
        stored |= {name: (file, info, data_start) for name, info in read_header(file).items()}
    expected = {pair.name for pair, _ in plan.tensors}
    absent, unknown = expected - stored.keys(), stored.keys() - expected - {"lm_head.weight"}
    unknown = {name for name in unknown if not name.endswith("rotary_emb.inv_freq")}
    if absent or unknown:
        problem = "lacks" if absent else "has more than its architecture's weights:"
        raise UnsupportedModel(f"The model {problem} {sorted(absent or unknown)[0][:80]!r}")
    return [_StoredTensor(*stored[pair.name], pair.shape) for pair, _ in plan.tensors]


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
