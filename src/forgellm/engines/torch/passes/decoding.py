"""A step that adds one token to each of some answers, as calls prepared once for each number of
answers: products in torch, and what lies between them in C (decoding.c).

Letters: n answers, N columns of products, D hidden size, H heads, K key heads, d head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forgellm.engines.torch.cache import KeyValueCache
from forgellm.engines.torch.passes.compiler import library

_SOURCE = Path(__file__).with_name("decoding.c")
_TYPES = {torch.float32: "float", torch.bfloat16: "bf16"}
_P, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float
_SIGNATURES = {
    "step_norm": [_P, _P, _SIZE, _P, _FLOAT, _P, _SIZE, _SIZE],
    "step_swiglu": [_P, _P, _SIZE],
    "step_attention": [_P, _SIZE, *[_P] * 4, _FLOAT, _FLOAT, _P, _SIZE, _P, *[_SIZE] * 4],
}


class _Plan:
    """The calls of one step for n answers, and the buffers that they read and write."""

    def __init__(self, c: Any, blocks: Sequence[Any], norm: Any, head: Tensor, n: int) -> None:
        first = blocks[0]
        columns = n + -n % first.multiple
        (heads, keys), width = first.num_heads, first.parts.head_size
        dtype, hidden = head.dtype, head.shape[1]
        self._held: list[Tensor] = []  # by nothing but their addresses otherwise
        self.calls: list[Callable[[], Any]] = []
        self.x = torch.empty(n, hidden)
        self.angles = torch.empty(2, n, width // 2)
        self.places = torch.empty(n, 3, dtype=torch.int64)
        normed = torch.zeros(columns, hidden, dtype=dtype)
        attended = torch.zeros(columns, heads * width, dtype=dtype)

        def product(of: Any, given: Tensor) -> Tensor:
            weight, bias = of
            out = torch.empty(len(weight), columns, dtype=dtype)
            self.calls.append(partial(torch.mm, weight, given, out=out))
            if bias is not None:
                self.calls.append(partial(out.add_, bias[:, None]))
            return out

        def add_norm(added: Tensor | None, of: Any) -> None:
            self.calls.append(
                partial(
                    c.step_norm,
                    self.x.data_ptr(),
                    None if added is None else self._at(added),
                    columns,
                    self._at(of.floats),
                    of.epsilon,
                    self._at(normed),
                    n,
                    hidden,
                )
            )

        added = None
        for layer, block in enumerate(blocks):
            b = block.parts
            add_norm(added, b.input_norm)
            qkv = product((block.query_key_value.weight, block.query_key_value.bias), normed.mT)
            norms = [
                None if each is None else self._at(each.floats)
                for each in (b.query_norm, b.key_norm)
            ]
            epsilon = 0.0 if b.query_norm is None else b.query_norm.epsilon
            self.calls.append(
                partial(
                    c.step_attention,
                    self._at(qkv),
                    columns,
                    *(each.data_ptr() for each in self.angles),
                    *norms,
                    epsilon,
                    b.scale,
                    self.places.data_ptr(),
                    layer,
                    self._at(attended),
                    n,
                    keys,
                    heads // keys,
                    width,
                )
            )
            add_norm(product((block.output.weight, block.output.bias), attended.mT), b.mlp_norm)
            gate_up = product((block.gate_up.weight, block.gate_up.bias), normed.mT)
            inner = torch.empty(len(gate_up) // 2, columns, dtype=dtype)
            self.calls.append(
                partial(c.step_swiglu, self._at(gate_up), self._at(inner), inner.numel())
            )
            added = product((block.down.weight, block.down.bias), inner)
        add_norm(added, norm)
        self.found = product((head, None), normed.mT)

    def _at(self, x: Tensor) -> int:
        assert x.is_contiguous()
        self._held.append(x)
        return x.data_ptr()


class NativeStep:
    def __init__(self, c: Any, blocks: Sequence[Any], norm: Any, head: Tensor) -> None:
        for name, signature in _SIGNATURES.items():
            function = getattr(c, name)
            function.argtypes, function.restype = signature, None
        self._plan = partial(_Plan, c, blocks, norm, head)
        self._plans: dict[int, _Plan] = {}

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, caches: Sequence[KeyValueCache]
    ) -> Tensor:
        """[V, N] from rows [n, D] and angles [n, d], for caches that have room for the new token."""
        n = len(x)
        plan = self._plans.get(n)
        if plan is None:
            plan = self._plans[n] = self._plan(n)
        half = plan.angles.shape[2]
        assert cos.shape == sin.shape == (n, 2 * half)
        plan.x.copy_(x)
        plan.angles[0].copy_(cos[:, half:])
        plan.angles[1].copy_(sin[:, half:])
        plan.places.copy_(torch.tensor([cache.place for cache in caches]))
        for call in plan.calls:
            call()
        return plan.found


def native_step(blocks: Sequence[Any], norm: Any, head: Tensor) -> NativeStep | None:
    """None where the machine has no compiler, or the model is not on its processor."""
    if head.device.type != "cpu" or head.dtype not in _TYPES:
        return None
    compiled = library(_SOURCE, (f"-DT={_TYPES[head.dtype]}",))
    return None if compiled is None else NativeStep(compiled, blocks, norm, head)
