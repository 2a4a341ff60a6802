"""Weights in MLX's affine format on a processor, in C: made plain, and multiplied with a few columns as
they are packed, in AMX tiles (affine_tiles.c) or without (affine.c)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from forgellm.engines.torch.passes.compiler import C_TYPES, library, set_signatures
from forgellm.engines.torch.passes.tiles import tile_library

_SOURCE = Path(__file__).with_name("affine.c")
_TILE_ROWS = 16
_TILE_GROUPS = (32, 64, 128)
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_ssize_t
_PRODUCT = [_POINTER, _POINTER, _SIZE, _POINTER, _POINTER, _SIZE, _SIZE]


class Packed(Protocol):
    """See `quantised.AffineWeight`."""

    packed: Tensor
    scales: Tensor
    biases: Tensor
    bits: int
    shape: tuple[int, int]


class _Affine(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("packed", "scales", "biases")),
        *((name, _SIZE) for name in ("bits", "group", "height", "width")),
    ]


def plain_rows(weight: Packed, which: slice) -> Tensor | None:
    """[rows, C], rounded after each operation; None where it cannot be computed in C."""
    compiled = _compiled(weight.scales.dtype) if _is_readable(weight) else None
    if compiled is None:
        return None
    first, stop, _ = which.indices(weight.shape[0])
    rows = weight.scales.new_empty(stop - first, weight.shape[1])
    compiled.affine_rows(_described(weight), first, stop - first, rows.data_ptr())
    return rows


def packed_product(weight: Packed) -> Callable[..., None] | None:
    """`affine_product` of affine.c for a weight that stays where it is, or what computes the same in
    tiles; None where neither can be computed."""
    if not _is_readable(weight):
        return None
    height, groups = weight.scales.shape
    is_tiled = height % _TILE_ROWS == 0 and weight.shape[1] // groups in _TILE_GROUPS
    compiled = None
    if is_tiled and weight.scales.dtype == torch.bfloat16:
        compiled = _compiled_tiles()
    compiled = compiled or _compiled(weight.scales.dtype)
    return None if compiled is None else partial(compiled.affine_product, _described(weight))


def _is_readable(weight: Packed) -> bool:
    return all(
        part.device.type == "cpu" and part.is_contiguous()
        for part in (weight.packed, weight.scales, weight.biases)
    )


def _described(weight: Packed) -> ctypes.Array[_Affine]:
    parts = (weight.packed, weight.scales, weight.biases)
    group = weight.shape[1] // weight.scales.shape[1]
    return (_Affine * 1)(_Affine(*(p.data_ptr() for p in parts), weight.bits, group, *weight.shape))


@functools.cache
def _compiled(dtype: torch.dtype) -> ctypes.CDLL | None:
    if dtype not in C_TYPES:
        return None
    compiled = library(_SOURCE, (f"-DT={C_TYPES[dtype]}",))
    if compiled is not None:
        rows = [_POINTER, _SIZE, _SIZE, _POINTER]
        set_signatures(compiled, {"affine_rows": rows, "affine_product": _PRODUCT})
    return compiled


@functools.cache
def _compiled_tiles() -> ctypes.CDLL | None:
    compiled = tile_library("affine_tiles.c", "int8")
    if compiled is not None:
        set_signatures(compiled, {"affine_product": _PRODUCT})
    return compiled
