"""Each pass as one loop in C (native.c), which holds to what `plain` computes.

The C code knows neither shapes nor types, so both are checked here.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from forgellm.engines.torch.passes.compiler import C_TYPES, library, set_signatures
from forgellm.engines.torch.passes.plain import Passes, Turns

_SOURCE = Path(__file__).with_name("native.c")
_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float
_ROWS = [_POINTER, _SIZE]
_TURNS = [_POINTER, _POINTER, _POINTER, _POINTER, _FLOAT]
_SIGNATURES = {
    "rms_norm": [_POINTER, *_ROWS, _POINTER, _POINTER, _FLOAT, *_ROWS, _SIZE, _SIZE],
    "rms_norm_backward": [*_ROWS, _POINTER, _POINTER, _FLOAT, *[_POINTER] * 3, _SIZE, _SIZE],
    "rotate": [*_ROWS, *_TURNS, _POINTER, *[_SIZE] * 4],
    "rotate_backward": [_POINTER, *_ROWS, *_TURNS, *_ROWS, _POINTER, *[_SIZE] * 4],
    "swiglu": [_POINTER, *_ROWS, _SIZE, _SIZE],
    "swiglu_backward": [*_ROWS, _POINTER, _POINTER, *_ROWS, _SIZE, _SIZE],
    "softmax_backward": [_POINTER, _POINTER, *[_SIZE] * 4],
    "exponentials": [*[_POINTER] * 4, _SIZE, _SIZE],
}


@functools.cache
def passes_for(sums: torch.dtype, computed: torch.dtype) -> Passes:
    """The fastest passes of this machine's processor for blocks that add in one type and multiply in
    another."""
    if sums in C_TYPES and computed in C_TYPES:
        compiled = library(_SOURCE, (f"-DS={C_TYPES[sums]}", f"-DT={C_TYPES[computed]}"))
        if compiled is not None:
            return NativePasses(compiled, sums, computed)
    return Passes()


class NativePasses(Passes):
    def __init__(self, compiled: ctypes.CDLL, sums: torch.dtype, computed: torch.dtype) -> None:
        self._sums, self._computed = sums, computed
        set_signatures(compiled, _SIGNATURES)
        self._c = compiled

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float, out: Tensor) -> None:
        self._c.rms_norm(
            _whole(x, self._sums),
            None,
            0,
            None,
            _floats(weight),
            epsilon,
            *self._rows(out),
            *x.shape,
        )

    def add_rms_norm(
        self, x: Tensor, sums: Tensor, weight: Tensor, epsilon: float, out: Tensor
    ) -> Tensor:
        middle = torch.empty_like(x)
        self._c.rms_norm(
            _whole(x, self._sums),
            *self._rows(sums),
            _whole(middle, self._sums),
            _floats(weight),
            epsilon,
            *self._rows(out),
            *x.shape,
        )
        return middle

    def rms_norm_backward(
        self, g: Tensor, x: Tensor, weight: Tensor, epsilon: float, plus: Tensor, wants_weight: bool
    ) -> tuple[Tensor, Tensor | None]:
        out = torch.empty_like(x)
        d_weight = torch.empty(x.shape) if wants_weight else None
        self._c.rms_norm_backward(
            *self._rows(g),
            _whole(x, self._sums),
            _floats(weight),
            epsilon,
            _whole(plus, self._sums),
            _whole(out, self._sums),
            _floats(d_weight),
            *x.shape,
        )
        return out, None if d_weight is None else d_weight.sum(0)

    def rotate(self, qkv: Tensor, turns: Turns, num_heads: tuple[int, int]) -> Tensor:
        half = turns.cosines.shape[-1]
        out = qkv.new_empty(len(qkv), sum(num_heads), 2 * half)
        self._c.rotate(
            *self._rows(qkv),
            *_of_turns(turns),
            _whole(out, self._computed),
            len(qkv),
            *num_heads,
            half,
        )
        return out

    def rotate_backward(
        self,
        g: Tensor,
        qkv: Tensor,
        turns: Turns,
        num_heads: tuple[int, int],
        out: Tensor,
        wants_weight: bool,
    ) -> tuple[Tensor, Tensor] | None:
        half = turns.cosines.shape[-1]
        d_weight = torch.empty(g.shape) if wants_weight and turns.query_weight is not None else None
        self._c.rotate_backward(
            _whole(g, self._computed),
            *self._rows(qkv),
            *_of_turns(turns),
            *self._rows(out),
            _floats(d_weight),
            len(qkv),
            *num_heads,
            half,
        )
        if d_weight is None:
            return None
        queries, keys = torch.split(d_weight, list(num_heads), 1)
        return queries.sum((0, 1)), keys.sum((0, 1))

    def swiglu(self, gate_up: Tensor, out: Tensor) -> None:
        self._c.swiglu(_whole(gate_up, self._computed), *self._rows(out), *out.shape)

    def swiglu_backward(self, g: Tensor, gate_up: Tensor, out: Tensor) -> Tensor:
        found = torch.empty_like(gate_up)
        self._c.swiglu_backward(
            *self._rows(g),
            _whole(gate_up, self._computed),
            _whole(found, self._computed),
            *self._rows(out),
            *out.shape,
        )
        return found

    def softmax_backward(self, scores: Tensor, d_probs: Tensor, num_queries: int) -> None:
        heads, keys = scores.shape[0] * scores.shape[1] // num_queries, scores.shape[-1]
        self._c.softmax_backward(
            _whole(scores, self._computed),
            _whole(d_probs, self._computed),
            heads,
            num_queries,
            keys,
            keys - num_queries + 1,
        )

    def exponentials(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        behind, others = torch.empty(len(labels)), torch.empty(len(labels))
        self._c.exponentials(
            _whole(logits, self._computed),
            _whole(labels, torch.int64),
            behind.data_ptr(),
            others.data_ptr(),
            *logits.shape,
        )
        return behind, others

    def _rows(self, x: Tensor) -> tuple[int, int]:
        """Where rows [N, ...] begin, and how far they stand apart."""
        assert x.dtype == self._computed and x.stride(1) == 1 and x.ndim == 2
        return x.data_ptr(), x.stride(0)


def _whole(x: Tensor, dtype: torch.dtype) -> int:
    assert x.dtype == dtype and x.is_contiguous()
    return x.data_ptr()


def _floats(x: Tensor | None) -> int | None:
    return None if x is None else _whole(x, torch.float32)


def _of_turns(turns: Turns) -> tuple[int | None, int | None, int | None, int | None, float]:
    cosines, sines, query_weight, key_weight, epsilon = turns
    return _floats(cosines), _floats(sines), _floats(query_weight), _floats(key_weight), epsilon
