"""A model's pass for the next tokens of answers, straight from the weights: no module is called, the
products that read the same input are one, and each answer has a cache of its own.

A product is W x^T, [out, N]: for few tokens CPU libraries compute that twice as fast as [N, out]. In
bfloat16 on a processor the tokens are filled up to a multiple of 16, the side of an AMX tile. One
takes as long as sixteen, since reading the weights takes the time, and comes out the same bit for bit
whoever else is served. What lies between the products of a step is computed in C where there is a
compiler (`compiled_step`).

For models whose blocks `block.DecoderBlock` can read, without sliding windows. One is taken for such
a model only if its logits come out as its own code says. `own_code` serves all others.

Letters: n tokens (of one answer, or one of each of n answers), N the same filled up, D hidden size,
H heads, K key-value heads, d head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgellm.engines.torch.attention import MODEL_ERRORS
from forgellm.engines.torch.block import DecoderBlock, letting_go
from forgellm.engines.torch.cache import CacheShape, KeyValueCache
from forgellm.engines.torch.compiled_step import compiled_step
from forgellm.engines.torch.load import logit_scaling
from forgellm.engines.torch.memory import let_go_of_weight_files
from forgellm.engines.torch.own_code import OwnCode
from forgellm.engines.torch.packing import decoder_of
from forgellm.engines.torch.product import Product
from forgellm.engines.torch.projection import Norm

_TILE = 16
_PROOF_TOKENS = 40
# Of the greatest logit. In 16 bits either way of computing is that far from the exact result.
_TOLERANCES = {torch.float32: 1e-4}


def _filled(rows: Tensor, multiple: int) -> Tensor:
    """[n, D] -> [D, N], with zeros in the columns that are added."""
    lacking = -len(rows) % multiple
    return (F.pad(rows, (0, 0, 0, lacking)) if lacking else rows).mT


@dataclass(frozen=True)
class StraightBlock:
    """A decoder block, of which each product's tokens are filled up to a multiple."""

    parts: DecoderBlock[Product]
    multiple: int

    @classmethod
    def of(cls, layer: nn.Module, multiple: int) -> StraightBlock:
        """Raises AttributeError, TypeError where the module has other parts."""
        parts = DecoderBlock.of(layer, Product.of)
        if parts.window is not None:
            raise TypeError("a sliding window")
        return cls(parts, multiple)

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens [n, D] with angles [n, 1, d]: queries [n, H, d], and keys with values
        [n, 2, K, d]."""
        b = self.parts
        num_queries, num_keys = b.num_heads
        found = b.qkv(_filled(b.input_norm(x), self.multiple))
        rows = found.mT[: len(x)].contiguous().view(len(x), -1, b.head_size)
        rotated, values = torch.split(rows, [num_queries + num_keys, num_keys], 1)
        if b.query_norm is not None and b.key_norm is not None:
            queries, keys = torch.split(rotated, [num_queries, num_keys], 1)
            rotated = torch.cat((b.query_norm(queries), b.key_norm(keys)), 1)
        # The second half of `sin` turns one way and the first the other.
        rotated = torch.addcmul(rotated * cos, rotated.roll(b.head_size // 2, -1), sin)
        queries, keys = torch.split(rotated, [num_queries, num_keys], 1)
        return queries, torch.stack((keys, values), 1)

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output [n, D] from its input and what its heads found [n, H * d]."""
        x = x + self.parts.output(_filled(attended, self.multiple)).mT[: len(x)]
        gate, up = self.parts.gate_up(_filled(self.parts.mlp_norm(x), self.multiple)).chunk(2)
        return x + self.parts.down(F.silu(gate).mul_(up)).mT[: len(x)]


class StraightModel:
    """See `decoding.Model`."""

    def __init__(self, model: Any) -> None:
        """Raises AttributeError, TypeError where the model has other parts."""
        decoder = decoder_of(model)
        self._norm = Norm.of(decoder.norm)
        self.dtype = self._norm.weight.dtype  # adapters have their own
        on_cpu = model.device.type == "cpu"
        self._multiple = _TILE if on_cpu and self.dtype == torch.bfloat16 else 1
        layers = letting_go(decoder.layers)
        self._blocks = [StraightBlock.of(layer, self._multiple) for layer in layers]
        self._embedding = decoder.embed_tokens
        self._rotary = decoder.rotary_emb
        self._head = Product.of(model.get_output_embeddings())
        self._scaling = logit_scaling(model)
        parts = [block.parts for block in self._blocks]
        self._compiled = compiled_step(parts, self._norm, self._head, self._multiple)
        first = self._blocks[0]
        self._shape = CacheShape(
            num_layers=len(self._blocks),
            num_heads=first.parts.num_heads[1],
            head_size=first.parts.head_size,
            dtype=self.dtype,
            device=model.device,
        )

    def new_cache(self) -> KeyValueCache:
        return KeyValueCache(self._shape)

    def read(self, ids: list[int], cache: KeyValueCache) -> Tensor:
        """Put tokens behind what a cache holds; logits [V] float32 of what follows them."""
        past, count = len(cache), len(ids)
        kept = cache.extended(ids).unbind()
        x, cos, sin = self._begin(ids, range(past, past + count))
        mask = None
        if past and count > 1:
            mask = x.new_full((count, past + count), float("-inf")).triu_(past + 1)
        for block, (keys, values) in zip(self._blocks, kept, strict=True):
            queries, new = block.heads(x, cos, sin)
            keys[:, past:], values[:, past:] = new.transpose(0, 2).unbind(1)
            attended = F.scaled_dot_product_attention(
                queries.transpose(0, 1)[None],
                keys[None],
                values[None],
                attn_mask=mask,
                is_causal=not past and count > 1,
                scale=block.parts.scale,
                enable_gqa=True,
            )
            x = block.after_attention(x, attended[0].transpose(0, 1).flatten(1))
        return self._logits(x[-1:])[0]

    def step(self, ids: list[int], caches: Sequence[KeyValueCache]) -> Tensor:
        """Put one token behind each cache; logits [N, V] float32 of what follows."""
        x, cos, sin = self._begin(ids, [len(cache) for cache in caches])
        held = [cache.extended([own]) for own, cache in zip(ids, caches, strict=True)]
        if self._compiled is not None:
            return self._scaled(self._compiled(x, cos[:, 0], sin[:, 0], caches).mT[: len(ids)])
        kept = [each[:, :, None].unbind() for each in held]  # of a row, by layer: [2, 1, K, n, d]
        ends = [
            each[:, :, :, -1].unbind() for each in held
        ]  # the place of the new token: [2, K, d]
        for layer, block in enumerate(self._blocks):
            queries, new = block.heads(x, cos, sin)
            torch._foreach_copy_([end[layer] for end in ends], list(new.unbind()))
            # Queries that share keys stand as if they were several tokens of one head.
            rows = queries.reshape(len(ids), 1, self._shape.num_heads, -1, self._shape.head_size)
            attended = [
                F.scaled_dot_product_attention(
                    row, own[layer][0], own[layer][1], scale=block.parts.scale
                )
                for row, own in zip(rows.unbind(), kept, strict=True)
            ]
            x = block.after_attention(x, torch.cat(attended).flatten(1))
        return self._logits(x)

    def _begin(self, ids: list[int], positions: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [n, D], and the angles by which the tokens' heads are turned [n, 1, d]."""
        device = self._shape.device
        x = self._embedding(torch.tensor(ids, device=device))
        cos, sin = self._rotary(x, torch.tensor([list(positions)], device=device))
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        return x, cos[0, :, None], sin[0, :, None]

    def _logits(self, x: Tensor) -> Tensor:
        """[n, V] float32 of rows [n, D]."""
        found = self._head(_filled(self._norm(x), self._multiple))
        return self._scaled(found.mT[: len(x)])

    def _scaled(self, found: Tensor) -> Tensor:
        """As float32, as the model scales them; a copy."""
        return self._scaling(found.float())


def straight_model(model: Any) -> StraightModel | None:
    """None where the model's blocks are of another kind, or come out otherwise than by its own code
    on a few random tokens, read together and one by one."""
    try:
        straight = StraightModel(model)
        is_right = _agree(straight, OwnCode(model), model)
    except MODEL_ERRORS:
        return None
    let_go_of_weight_files()  # which the own code has read
    return straight if is_right else None


@torch.inference_mode()
def _agree(straight: StraightModel, own: OwnCode, model: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    vocab_size = int(model.config.get_text_config().vocab_size)
    ids: list[int] = torch.randint(vocab_size, (_PROOF_TOKENS,), generator=generator).tolist()
    tolerance = _TOLERANCES.get(straight.dtype, 0.1)
    cache, own_cache = straight.new_cache(), own.new_cache()
    for part in (ids[:7], ids[7:-1], ids[-1:]):
        theirs, ours = own.read(part, own_cache), straight.read(part, cache)
        if not float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max()):
            return False
    [ours] = straight.step(ids[:1], [cache])
    theirs = own.read(ids[:1], own_cache)
    return float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())
