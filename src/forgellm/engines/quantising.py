"""A model's weights rounded to a few bits and written in MLX's format, which both engines load.

Rows are read, rounded and written a few megabytes at a time, so memory does not grow with the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from forgellm.catalog.safetensors_header import BITS, TensorInfo, read_header
from forgellm.catalog.safety import weight_files
from forgellm.catalog.tensor_values import (
    FLOATS,
    byte_blocks,
    encode,
    first_rows,
    float_blocks,
    read_rows,
)
from forgellm.engines import merging
from forgellm.engines.affine import Quantised, dequantise, quantise
from forgellm.errors import ForgeError, UnsupportedModel

_PARTS = ("scales", "biases")
_READ_BACK = 16  # rows
_MOST_STEPS = 2.5
_SMALLEST = 2.0**-24  # below it float16 has no more numbers


@dataclass(frozen=True)
class QuantisePlan:
    """What becomes of each tensor of each weight file. A tied output is left out: the embedding is
    stored once.

    Attributes:
        files: by weight file its tensors as they are, in order.
        quantised: names of those that are rounded, of `num_matrices` matrices.
    """

    bits: int
    group_size: int
    files: dict[Path, dict[str, TensorInfo]]
    quantised: frozenset[str]
    num_matrices: int

    @property
    def num_bytes(self) -> int:
        """Size of the new weight files, about."""
        parts = (self.parts(n, i) for infos in self.files.values() for n, i in infos.items())
        return sum(part.num_bytes for own in parts for part in own.values())

    def parts(self, name: str, info: TensorInfo) -> dict[str, TensorInfo]:
        """What a tensor is stored as: itself, or packed words with scales and biases.

        Places count from the first part's start.
        """
        if name not in self.quantised:
            return {name: TensorInfo(info.dtype, info.shape, 0, info.num_bytes)}
        rows, columns = info.shape
        stem = name.removesuffix("weight")
        shapes = {name: ("U32", (rows, columns * self.bits // 32))}
        groups = (info.dtype, (rows, columns // self.group_size))
        shapes |= {f"{stem}{part}": groups for part in _PARTS}
        parts, start = {}, 0
        for part, (dtype, shape) in shapes.items():
            end = start + shape[0] * shape[1] * BITS[dtype] // 8
            parts[part] = TensorInfo(dtype, shape, start, end)
            start = end
        return parts


def plan_quantising(
    folder: Path, config: dict[str, Any], bits: int, group_size: int
) -> QuantisePlan:
    """Every matrix whose rows are whole groups is rounded, the embedding too, as mlx_lm does it.

    Raises UnsupportedModel for a mixture of experts, and where nothing would be rounded.
    """
    tied = bool((config.get("text_config") or config).get("tie_word_embeddings", False))
    files = {file: _kept(read_header(file), tied) for file in weight_files(folder)}
    tensors = {name: info for infos in files.values() for name, info in infos.items()}
    if any(".experts." in name for name in tensors):
        raise UnsupportedModel(
            "A mixture of experts cannot be quantised here",
            suggestion="On a Mac: mlx_lm.convert -q.",
        )
    matrices = {
        name: info
        for name, info in tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2 and info.dtype in FLOATS
    }
    quantised = frozenset(n for n, info in matrices.items() if info.shape[1] % group_size == 0)
    if not quantised:
        raise UnsupportedModel(
            f"No matrix of this model has rows of whole groups of {group_size} plain numbers",
            suggestion="Choose a smaller group size.",
        )
    return QuantisePlan(bits, group_size, files, quantised, len(matrices))


def _kept(tensors: dict[str, TensorInfo], tied: bool) -> dict[str, TensorInfo]:
    return {n: i for n, i in tensors.items() if not (tied and n.endswith("lm_head.weight"))}


def write_quantised(
    plan: QuantisePlan, source: Path, out: Path, on_progress: Callable[[float], None]
) -> None:
    """Weight files under their names, their index, and `config.json`. Raises OSError."""

    def rewrite(file: Path, target: Path, progress: merging.Progress) -> None:
        _write_file(plan, file, target, progress)

    merging.rewrite_weights(source, out, rewrite, on_progress)
    config = json.loads((source / "config.json").read_text("utf-8"))
    settings = {"group_size": plan.group_size, "bits": plan.bits, "mode": "affine"}
    config |= {"quantization": settings, "quantization_config": settings}
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def read_back(plan: QuantisePlan, out: Path) -> int:
    """How many weights were rounded. Raises ForgeError unless the first rows of each are on the disk
    as they should be, within the rounding.

    A number is rounded by half a step, or a whole one at the near end of a group; storing scale and
    bias in 16 bits can move it by as much again.
    """
    for file, tensors in plan.files.items():
        written = read_header(out / file.name)
        for name in tensors.keys() & plan.quantised:
            rows = read_rows(file, tensors[name], _READ_BACK)
            words, scales, biases = (
                _stored_rows(out / file.name, written[part])
                for part in plan.parts(name, tensors[name])
            )
            again = dequantise(Quantised(words, scales, biases), plan.bits)
            steps = np.abs(again - rows).reshape(*scales.shape, -1).max(-1)
            # A comparison with NaN is false, so it is refused too.
            if not (steps <= _MOST_STEPS * np.abs(scales) + _SMALLEST).all():
                raise ForgeError(
                    f"{name} was not stored as it was computed, so the model was not kept.",
                    suggestion="Check the disk, try again, and report this.",
                )
    return len(plan.quantised)


def _stored_rows(file: Path, info: TensorInfo) -> NDArray[Any]:
    if info.dtype in FLOATS:
        return read_rows(file, info, _READ_BACK)
    info = first_rows(info, _READ_BACK)
    return np.frombuffer(b"".join(byte_blocks(file, info)), "<u4").reshape(info.shape)


def _write_file(
    plan: QuantisePlan, file: Path, target: Path, on_progress: merging.Progress
) -> None:
    tensors = plan.files[file]
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    starts, position = {}, 0
    for name, info in tensors.items():
        starts[name] = position
        for part, own in plan.parts(name, info).items():
            offsets = [starts[name] + own.start, starts[name] + own.end]
            header[part] = {"dtype": own.dtype, "shape": own.shape, "data_offsets": offsets}
            position = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors keeps the data aligned
    total, done = sum(info.num_bytes for info in tensors.values()) or 1, 0
    with target.open("wb") as output:
        output.write(len(text).to_bytes(8, "little") + text)
        for name, info in tensors.items():
            start = 8 + len(text) + starts[name]
            output.seek(start)
            if name in plan.quantised:
                for num_bytes in _write_rounded(plan, name, info, file, output, start):
                    on_progress((done + num_bytes) / total)
            else:
                for block in byte_blocks(file, info):
                    output.write(block)
            done += info.num_bytes
            on_progress(done / total)


def _write_rounded(
    plan: QuantisePlan, name: str, info: TensorInfo, file: Path, output: IO[bytes], start: int
) -> Iterator[int]:
    """Yields how many of the tensor's bytes are done."""
    places = [start + part.start for part in plan.parts(name, info).values()]
    done = 0
    for rows in float_blocks(file, info):
        words, scales, biases = quantise(rows, plan.bits, plan.group_size)
        pieces = (words.tobytes(), encode(scales, info.dtype), encode(biases, info.dtype))
        for number, piece in enumerate(pieces):
            output.seek(places[number])
            output.write(piece)
            places[number] += len(piece)
        done += rows.size * BITS[info.dtype] // 8
        yield done
