"""What is computed in the bfloat16 tiles of Intel's AMX, where processor and compiler have them:
attention (attention.c), and the products of a step of answers (products.c)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from forgellm import hardware
from forgellm.engines.torch.passes.compiler import library, set_signatures

_ROWS, _STEP = 16, 32  # of a tile
_MOST = 256
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_ssize_t
_SIGNATURES = {
    "step_product": [_POINTER, *[_SIZE] * 2, _POINTER, _SIZE, *[_POINTER] * 2, *[_SIZE] * 2]
}

Segments = Sequence[tuple[int, int, int]]


class _View(ctypes.Structure):
    """Of a tensor [B, heads, T, d]."""

    _fields_ = [("at", _POINTER), ("row", _SIZE), ("head", _SIZE), ("token", _SIZE)]


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, _SIZE) for name in ("num_segments", "heads", "groups", "tokens", "width")),
        ("scale", ctypes.c_float),
    ]


class TileAttention:
    """Causal attention inside segments, each (row, start, stop). q, out and their gradients
    [B, H, T, d], k and v [B, K, T, d], all bfloat16; log-sum-exps [B, H, T] float32."""

    def __init__(self, compiled: ctypes.CDLL) -> None:
        self._c = compiled

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, segments: Segments, out: Tensor
    ) -> Tensor:
        lse = torch.empty(q.shape[:3], dtype=torch.float32)
        views = [ctypes.byref(_view(x)) for x in (q, k, v, out)]
        self._c.attention_forward(
            *views, _POINTER(lse.data_ptr()), _ids(segments), _shape(q, k, scale, segments)
        )
        return lse

    def backward(
        self,
        given: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        lse: Tensor,
        scale: float,
        segments: Segments,
        found: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """From the gradient of `out`, q, k, v and `out`, to the gradients of q, k and v."""
        self._c.attention_backward(
            (_View * 5)(*map(_view, given)),
            (_View * 3)(*map(_view, found)),
            _POINTER(lse.data_ptr()),
            _ids(segments),
            _shape(given[1], given[2], scale, segments),
        )


def tile_library(source: str, kind: str) -> ctypes.CDLL | None:
    """A file of this folder that computes in tiles of a kind, bf16 or int8; None where the processor,
    the system or the compiler has none."""
    if not {"amx_tile", f"amx_{kind}"} <= hardware.cpu_flags():
        return None
    flags = ("-mamx-tile", f"-mamx-{kind}", "-lm")
    compiled = library(Path(__file__).with_name(source), flags)
    return compiled if compiled is not None and compiled.may_use_tiles() else None


@functools.cache
def _attention() -> TileAttention | None:
    compiled = tile_library("attention.c", "bf16")
    return None if compiled is None else TileAttention(compiled)


@functools.cache
def _product() -> Callable[..., None] | None:
    compiled = tile_library("products.c", "bf16")
    if compiled is None:
        return None
    set_signatures(compiled, _SIGNATURES)
    product: Callable[..., None] = compiled.step_product
    return product


def tile_attention(q: Tensor, v: Tensor) -> TileAttention | None:
    """None where this machine, or these tensors' type or head size, have no tiles."""
    size = q.shape[-1]
    fits = size == v.shape[-1] and size % _STEP == 0 and size <= _MOST
    return _attention() if fits and q.dtype == torch.bfloat16 else None


def tile_product(weight: Tensor) -> Callable[..., None] | None:
    """`step_product` of products.c for a weight [out, in]; None where it has no tiles."""
    fits = weight.shape[0] % _ROWS == 0 and weight.shape[1] % _STEP == 0
    is_whole = weight.dtype == torch.bfloat16 and weight.is_contiguous()
    return _product() if fits and is_whole else None


def _view(x: Tensor) -> _View:
    assert x.dtype == torch.bfloat16 and x.stride(3) == 1
    return _View(x.data_ptr(), x.stride(0), x.stride(1), x.stride(2))


def _ids(segments: Segments) -> ctypes.Array[ctypes.c_int64]:
    flat = [number for segment in segments for number in segment]
    return (ctypes.c_int64 * len(flat))(*flat)


def _shape(q: Tensor, k: Tensor, scale: float, segments: Segments) -> ctypes.Array[_Shape]:
    heads, tokens, width = q.shape[1:]
    return (_Shape * 1)(_Shape(len(segments), heads, heads // k.shape[1], tokens, width, scale))
