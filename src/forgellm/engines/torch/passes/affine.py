"""Weights in MLX's affine format on a processor, in C: made plain, or multiplied as they are packed, with
a few columns (affine.c), or with any in AMX tiles (affine_tiles.c)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
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
    """`affine` of affine.h, and `tiled` of affine_tiles.c."""

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
    """`affine_product` of affine.c for a weight that stays where it is; None where there is none."""
    compiled = _compiled(weight.scales.dtype) if _is_readable(weight) else None
    return None if compiled is None else partial(compiled.affine_product, _described(weight))


class TiledWeight:
    """A matrix [N, C] in 4 or 8 bits as AMX tiles read it (affine_tiles.c). `multiply` is called with
    x, whether it is turned, room, the output, the columns that are given and all."""

    def __init__(self, compiled: ctypes.CDLL, weights: Sequence[Packed]) -> None:
        height = sum(weight.shape[0] for weight in weights)
        first = weights[0]
        self.shape = height, first.shape[1]
        self._numbers = first.packed.new_zeros(height, first.packed.shape[1])
        self._scales = first.scales.new_empty(height, first.scales.shape[1])
        self._biases = torch.empty_like(self._scales)
        parts = self._numbers, self._scales, self._biases
        own, start = _structure(parts, first.bits, self.shape), 0
        for weight in weights:
            compiled.put_in_tiles(_described(weight), own, start)
            start += weight.shape[0]
        self.multiply: Callable[..., None] = partial(compiled.affine_product, own)

    @classmethod
    def of(cls, weights: Sequence[Packed]) -> TiledWeight | None:
        """The rows of several, copied; None where this machine or these weights have no tiles."""
        kinds = {
            (w.bits, w.shape[1], w.scales.shape[1], w.scales.dtype, w.shape[0] % _TILE_ROWS)
            for w in weights
        }
        _, width, groups, dtype, rest = next(iter(kinds))
        fits = len(kinds) == 1 and dtype == torch.bfloat16 and rest == 0
        if not fits or width // groups not in _TILE_GROUPS or not all(map(_is_readable, weights)):
            return None
        compiled = _compiled_tiles()
        return None if compiled is None else cls(compiled, weights)

    @property
    def dtype(self) -> torch.dtype:
        return self._scales.dtype

    @property
    def device(self) -> torch.device:
        return self._scales.device

    def times(self, x: Tensor) -> Tensor:
        """W x [N, columns] of x [C, columns]; whole tiles of columns."""
        columns = x.shape[1]
        assert columns % _TILE_ROWS == 0 and x.dtype == self.dtype
        is_turned = x.is_contiguous()
        given = x if is_turned else x.mT.contiguous()
        room = torch.empty(self.shape[1], columns)
        out = x.new_empty(self.shape[0], columns)
        pointers = given.data_ptr(), is_turned, room.data_ptr(), out.data_ptr()
        self.multiply(*pointers, columns, columns)
        return out


def _is_readable(weight: Packed) -> bool:
    return all(
        part.device.type == "cpu" and part.is_contiguous()
        for part in (weight.packed, weight.scales, weight.biases)
    )


def _described(weight: Packed) -> ctypes.Array[_Affine]:
    return _structure((weight.packed, weight.scales, weight.biases), weight.bits, weight.shape)


def _structure(
    parts: tuple[Tensor, Tensor, Tensor], bits: int, shape: tuple[int, int]
) -> ctypes.Array[_Affine]:
    group = shape[1] // parts[1].shape[1]
    return (_Affine * 1)(_Affine(*(part.data_ptr() for part in parts), bits, group, *shape))


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
        put = [_POINTER, _POINTER, _SIZE]
        set_signatures(compiled, {"put_in_tiles": put, "affine_product": _PRODUCT})
    return compiled
