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
from typing import Any

import torch
from torch import Tensor

from forgellm.engines.torch.block import DecoderBlock
from forgellm.engines.torch.cache import KeyValueCache
from forgellm.engines.torch.passes.affine import TiledWeight, packed_product
from forgellm.engines.torch.passes.compiler import C_TYPES, library, set_signatures
from forgellm.engines.torch.passes.tiles import tile_product
from forgellm.engines.torch.product import Product
from forgellm.engines.torch.projection import Norm
from forgellm.engines.torch.quantised import AffineWeight

Blocks = Sequence[DecoderBlock[Product]]

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
        self, c: Any, blocks: Blocks, norm: Norm, head: Product, multiple: int, n: int
    ) -> None:
        first = blocks[0]
        self._c, self._n, self._columns = c, n, n + -n % multiple
        (heads, keys), self._width = first.num_heads, first.head_size
        self._heads = keys, heads // keys
        hidden = head.weight.shape[1]
        self._held: list[Tensor] = []  # by nothing but their addresses otherwise
        self._rooms: dict[str, Tensor] = {}
        self.calls: list[Callable[[], Any]] = []
        self.x = torch.empty(n, hidden)
        self.angles = torch.empty(2, n, self._width // 2)
        self.places = torch.empty(n, 3, dtype=torch.int64)
        self._normed = torch.zeros(self._columns, hidden, dtype=head.weight.dtype)
        self._attended = self._normed.new_zeros(self._columns, heads * self._width)
        widest = max(product.weight.shape[1] for block in blocks for product in block.joined)
        # Of what products are called with, as they read it.
        self._given = torch.zeros(widest, self._columns)
        added = None
        for layer, block in enumerate(blocks):
            self._add_norm(added, block.input_norm)
            qkv = self._product("qkv", block.qkv, self._normed.mT)
            self._attention(qkv, layer, block)
            added = self._product("added", block.output, self._attended.mT)
            self._add_norm(added, block.mlp_norm)
            inner = self._swiglu(self._product("gate_up", block.gate_up, self._normed.mT))
            added = self._product("added", block.down, inner)
        self._add_norm(added, norm)
        self.found = self._product("logits", head, self._normed.mT)

    def _product(self, name: str, of: Product, given: Tensor) -> Tensor:
        out = self._room(name, of.weight.shape[0])
        multiply = _multiply(of.weight)
        if multiply is None:
            self.calls.append(partial(torch.mm, of.weight, given, out=out))
        else:
            is_turned = given.is_contiguous()
            self._call(
                multiply,
                self._at(given if is_turned else given.mT),
                is_turned,
                self._at(self._given),
                self._at(out),
                self._n,
                self._columns,
            )
        if of.bias is not None or of.added is not None:
            self.calls.append(partial(of.add_rest, out, given))
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

    def _attention(self, qkv: Tensor, layer: int, block: DecoderBlock[Product]) -> None:
        norms = block.query_norm, block.key_norm
        self._call(
            self._c.step_attention,
            self._at(qkv),
            self._columns,
            *map(self._at, self.angles),
            *(None if norm is None else self._at(norm.floats) for norm in norms),
            0.0 if norms[0] is None else norms[0].epsilon,
            block.scale,
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


def _multiply(weight: Tensor | AffineWeight | TiledWeight) -> Callable[..., None] | None:
    """The product with a weight in C, called with x, whether it is turned, room, the output, n and N;
    None where torch computes it."""
    if isinstance(weight, AffineWeight):
        return packed_product(weight)
    if isinstance(weight, TiledWeight):
        return weight.multiply
    in_tiles = tile_product(weight)
    return None if in_tiles is None else partial(in_tiles, weight.data_ptr(), *weight.shape)


class CompiledStep:
    def __init__(self, c: Any, blocks: Blocks, norm: Norm, head: Product, multiple: int) -> None:
        set_signatures(c, _SIGNATURES)
        self._plan = partial(_Plan, c, blocks, norm, head, multiple)
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


def compiled_step(blocks: Blocks, norm: Norm, head: Product, multiple: int) -> CompiledStep | None:
    """None where the machine has no compiler, or the model is of another kind or not on its processor."""
    (heads, keys), width = blocks[0].num_heads, blocks[0].head_size
    dtype, device = head.weight.dtype, head.weight.device
    if device.type != "cpu" or dtype not in C_TYPES or heads // keys * width > _MOST_QUERIES:
        return None
    weights = [head.weight, *(product.weight for block in blocks for product in block.joined)]
    packed = [weight for weight in weights if isinstance(weight, AffineWeight)]
    if any(w.dtype != dtype for w in weights) or any(packed_product(w) is None for w in packed):
        return None
    compiled = library(_SOURCE, (f"-DT={C_TYPES[dtype]}", "-lm"))
    return None if compiled is None else CompiledStep(compiled, blocks, norm, head, multiple)
