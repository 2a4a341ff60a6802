"""A step that adds one token to each of some answers, as calls prepared once for each number of
answers: products in AMX tiles (passes/products.c) or else in torch, and what lies between them in C
(passes/decoding.c).

Letters: n answers, N columns of products, D hidden size, H heads, K key heads, d head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forgellm.engines.torch.cache import KeyValueCache
from forgellm.engines.torch.passes.compiler import C_TYPES, library, set_signatures
from forgellm.engines.torch.passes.tiles import tile_product
from forgellm.engines.torch.projection import Norm

if TYPE_CHECKING:
    from forgellm.engines.torch.straight import Product, StraightBlock

_SOURCE = Path(__file__).parent / "passes" / "decoding.c"
_MOST_QUERIES = (
    16_384  # numbers of the queries that share a key head: the C code has them on its stack
)
_P, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float
_SIGNATURES = {
    "step_norm": [_P, _P, _SIZE, _P, _FLOAT, _P, _SIZE, _SIZE],
    "step_swiglu": [_P, _P, _SIZE],
    "step_attention": [_P, _SIZE, *[_P] * 4, _FLOAT, _FLOAT, _P, _SIZE, _P, *[_SIZE] * 4],
}


class _Plan:
    """The calls of one step for n answers, and the buffers that they read and write, which all layers
    share."""

    def __init__(
        self, c: Any, blocks: Sequence[StraightBlock], norm: Norm, head: Tensor, n: int
    ) -> None:
        first = blocks[0]
        self._c, self._n, self._columns = c, n, n + -n % first.multiple
        (heads, keys), self._width = first.num_heads, first.parts.head_size
        self._heads = keys, heads // keys
        hidden = head.shape[1]
        self._held: list[Tensor] = []  # by nothing but their addresses otherwise
        self._rooms: dict[str, Tensor] = {}
        self.calls: list[Callable[[], Any]] = []
        self.x = torch.empty(n, hidden)
        self.angles = torch.empty(2, n, self._width // 2)
        self.places = torch.empty(n, 3, dtype=torch.int64)
        self._normed = torch.zeros(self._columns, hidden, dtype=head.dtype)
        self._attended = self._normed.new_zeros(self._columns, heads * self._width)
        widest = max(product.weight.shape[1] for block in blocks for product in block.products)
        self._pairs = torch.zeros(widest // 2, self._columns, dtype=torch.int32)
        added = None
        for layer, block in enumerate(blocks):
            self._add_norm(added, block.parts.input_norm)
            qkv = self._product("qkv", block.query_key_value, self._normed.mT)
            self._attention(qkv, layer, block)
            added = self._product("added", block.output, self._attended.mT)
            self._add_norm(added, block.parts.mlp_norm)
            inner = self._swiglu(self._product("gate_up", block.gate_up, self._normed.mT))
            added = self._product("added", block.down, inner)
        self._add_norm(added, norm)
        self.found = self._matmul("logits", head, self._normed.mT)

    def _product(self, name: str, of: Product, given: Tensor) -> Tensor:
        out = self._matmul(name, of.weight, given)
        if of.bias is not None:
            self.calls.append(partial(out.add_, of.bias[:, None]))
        return out

    def _matmul(self, name: str, weight: Tensor, given: Tensor) -> Tensor:
        out = self._room(name, len(weight))
        in_tiles = tile_product(weight)
        if in_tiles is None:
            self.calls.append(partial(torch.mm, weight, given, out=out))
            return out
        is_turned = given.is_contiguous()
        self._call(
            in_tiles,
            self._at(weight),
            *weight.shape,
            self._at(given if is_turned else given.mT),
            is_turned,
            self._at(self._pairs),
            self._at(out),
            self._n,
            self._columns,
        )
        return out

    def _add_norm(self, added: Tensor | None, norm: Norm) -> None:
        self._call(
            self._c.step_norm,
            self._at(self.x),
            None if added is None else self._at(added),
            self._columns,
            self._at(norm.floats),
            norm.epsilon,
            self._at(self._normed),
            *self.x.shape,
        )

    def _attention(self, qkv: Tensor, layer: int, block: StraightBlock) -> None:
        norms = block.parts.query_norm, block.parts.key_norm
        self._call(
            self._c.step_attention,
            self._at(qkv),
            self._columns,
            *map(self._at, self.angles),
            *(None if norm is None else self._at(norm.floats) for norm in norms),
            0.0 if norms[0] is None else norms[0].epsilon,
            block.parts.scale,
            self._at(self.places),
            layer,
            self._at(self._attended),
            self._n,
            *self._heads,
            self._width,
        )

    def _swiglu(self, gate_up: Tensor) -> Tensor:
        inner = self._room("inner", len(gate_up) // 2)
        self._call(self._c.step_swiglu, self._at(gate_up), self._at(inner), inner.numel())
        return inner

    def _call(self, function: Callable[..., None], *arguments: float | None) -> None:
        self.calls.append(partial(function, *arguments))

    def _room(self, name: str, width: int) -> Tensor:
        """[width, N]; the next layer's product of that name takes the place of this one's."""
        if name not in self._rooms:
            self._rooms[name] = self._normed.new_empty(width, self._columns)
        return self._rooms[name]

    def _at(self, x: Tensor) -> int:
        assert x.is_contiguous()
        self._held.append(x)
        return x.data_ptr()


class CompiledStep:
    def __init__(self, c: Any, blocks: Sequence[StraightBlock], norm: Norm, head: Tensor) -> None:
        set_signatures(c, _SIGNATURES)
        self._plan = partial(_Plan, c, blocks, norm, head)
        self._plans: dict[int, _Plan] = {}

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, caches: Sequence[KeyValueCache]
    ) -> Tensor:
        """[V, N] from rows [n, D] and angles [n, d], for caches that have room for the new token, to
        be read before the next call."""
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


def compiled_step(blocks: Sequence[StraightBlock], norm: Norm, head: Tensor) -> CompiledStep | None:
    """None where the machine has no compiler, or the model is of another kind or not on its processor."""
    (heads, keys), width = blocks[0].num_heads, blocks[0].parts.head_size
    if (
        head.device.type != "cpu"
        or head.dtype not in C_TYPES
        or heads // keys * width > _MOST_QUERIES
    ):
        return None
    weights = [product.weight for block in blocks for product in block.products]
    if any(weight.dtype != head.dtype for weight in weights):
        return None
    compiled = library(_SOURCE, (f"-DT={C_TYPES[head.dtype]}", "-lm"))
    return None if compiled is None else CompiledStep(compiled, blocks, norm, head)
