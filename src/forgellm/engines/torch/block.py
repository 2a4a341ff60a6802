"""A decoder block of the common kind as one autograd function: it keeps less than autograd would, and
every gradient has its closed form.

The kind: root-mean-square norm, attention with rotary positions (queries and keys normed or not),
norm, gated SiLU (Shazeer 2020, arXiv 2002.05202), two residual sums; each linear layer plain or with
LoRA. Norms, rotations and gates are computed again in the backward pass, products are kept.
A block is taken for one only if both its output and its gradient come out as its own code says.

Letters: B rows, T tokens, N = B * T, D hidden size, H heads or key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgellm.engines.torch.attention import (
    Block,
    PackedLayout,
    attention_backward,
    attention_forward,
    packed_layout,
)
from forgellm.engines.torch.projection import Gradients, Norm, Projection, rotate, rotate_back

_PROOF_SEGMENTS = (0, 0, 0, 1, 1, 1, 1, 1)
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class DecoderBlock:
    """The parts of a block, read from its module."""

    input_norm: Norm
    query: Projection
    key: Projection
    value: Projection
    query_norm: Norm | None
    key_norm: Norm | None
    output: Projection
    mlp_norm: Norm
    gate: Projection
    up: Projection
    down: Projection
    head_size: int
    scale: float
    window: int | None

    @classmethod
    def of(cls, layer: nn.Module) -> DecoderBlock:
        """Raises AttributeError, TypeError where the module has other parts."""
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        if not isinstance(mlp.act_fn, nn.SiLU) and type(mlp.act_fn).__name__ != "SiLUActivation":
            raise TypeError("not gated by SiLU")
        has_norms = hasattr(attention, "q_norm")
        return cls(
            input_norm=Norm.of(layer.input_layernorm),
            query=Projection.of(attention.q_proj),
            key=Projection.of(attention.k_proj),
            value=Projection.of(attention.v_proj),
            query_norm=Norm.of(attention.q_norm) if has_norms else None,
            key_norm=Norm.of(attention.k_norm) if has_norms else None,
            output=Projection.of(attention.o_proj),
            mlp_norm=Norm.of(layer.post_attention_layernorm),
            gate=Projection.of(mlp.gate_proj),
            up=Projection.of(mlp.up_proj),
            down=Projection.of(mlp.down_proj),
            head_size=int(attention.head_dim),
            scale=float(attention.scaling),
            window=getattr(
                attention, "sliding_window", getattr(attention.config, "sliding_window", None)
            ),
        )

    def heads(self, x: Tensor, norm: Norm | None, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Queries or keys [B, T, H*d] as attention wants them: [B, H, T, d], normed and rotated."""
        x = x.view(*x.shape[:-1], -1, self.head_size)
        return rotate(x if norm is None else norm(x), *angles)

    def heads_backward(
        self, grad: Tensor, x: Tensor, norm: Norm | None, angles: Any, grads: Gradients
    ) -> Tensor:
        """[N, H*d] from `grad` [B, H, T, d] and what `heads` was given."""
        grad = rotate_back(grad, *angles)
        if norm is not None:
            grad = norm.backward(grad, x.view(*x.shape[:-1], -1, self.head_size), grads)
        return grad.flatten(-2).flatten(0, 1)


class _Block(torch.autograd.Function):
    """x [B, T, D] -> [B, T, D]. `trained` are the block's parameters that want gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        block: DecoderBlock,
        angles: tuple[Tensor, Tensor],
        parts: list[Block],
        *trained: Tensor,
    ) -> Tensor:
        b, (rows, tokens, _) = block, x.shape
        h = b.input_norm(x).flatten(0, 1)
        (q, low_q), (k, low_k), (v, low_v) = b.query(h), b.key(h), b.value(h)
        q, k, v = (part.view(rows, tokens, -1) for part in (q, k, v))
        heads_v = v.view(*v.shape[:-1], -1, b.head_size).transpose(1, 2)
        heads_q, heads_k = b.heads(q, b.query_norm, angles), b.heads(k, b.key_norm, angles)
        attended, lse = attention_forward(heads_q, heads_k, heads_v, b.scale, parts)
        sums, low_o = b.output(attended.transpose(1, 2).reshape(rows * tokens, -1))
        middle = sums.view_as(x).add_(x)
        h = b.mlp_norm(middle).flatten(0, 1)
        (gate, low_gate), (up, low_up) = b.gate(h), b.up(h)
        out, low_down = b.down(F.silu(gate).mul_(up))
        lows = (low_q, low_k, low_v, low_o, low_gate, low_up, low_down)
        ctx.save_for_backward(x, q, k, v, attended, lse, middle, gate, up, *lows)
        ctx.block, ctx.angles, ctx.parts, ctx.trained = block, angles, parts, trained
        return out.view_as(x).add_(middle)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        b: DecoderBlock = ctx.block
        x, q, k, v, attended, lse, middle, gate, up, *lows = ctx.saved_tensors
        low_q, low_k, low_v, low_o, low_gate, low_up, low_down = lows
        grads = Gradients(ctx.trained)
        g = grad.flatten(0, 1)

        act = F.silu(gate)
        d_inner = b.down.backward(g, act * up, low_down, grads)
        d_up = act.mul_(d_inner)
        d_gate = torch.ops.aten.silu_backward(d_inner.mul_(up), gate)
        h = b.mlp_norm(middle).flatten(0, 1)
        d_h = b.gate.backward(d_gate, h, low_gate, grads)
        d_h = b.up.backward(d_up, h, low_up, grads, d_h)
        d_middle = b.mlp_norm.backward(d_h.view_as(middle), middle, grads).add_(grad)
        del act, d_inner, d_up, d_gate

        g = d_middle.flatten(0, 1)
        flat = attended.transpose(1, 2).reshape(len(g), -1)
        d_attended = b.output.backward(g, flat, low_o, grads)
        d_attended = d_attended.view(*x.shape[:2], -1, b.head_size).transpose(1, 2)
        heads_v = v.view(*v.shape[:-1], -1, b.head_size).transpose(1, 2)
        heads_q, heads_k = b.heads(q, b.query_norm, ctx.angles), b.heads(k, b.key_norm, ctx.angles)
        d_q, d_k, d_v = attention_backward(
            d_attended, heads_q, heads_k, heads_v, attended, lse, b.scale, ctx.parts
        )
        d_q = b.heads_backward(d_q, q, b.query_norm, ctx.angles, grads)
        d_k = b.heads_backward(d_k, k, b.key_norm, ctx.angles, grads)
        d_v = d_v.transpose(1, 2).reshape(len(g), -1)

        wants_x = ctx.needs_input_grad[0] or b.input_norm.is_trained
        h = b.input_norm(x).flatten(0, 1)
        d_h = b.query.backward(d_q, h, low_q, grads, wants_x=wants_x)
        d_h = b.key.backward(d_k, h, low_k, grads, d_h, wants_x)
        d_h = b.value.backward(d_v, h, low_v, grads, d_h, wants_x)
        d_x = None
        if wants_x:
            d_x = b.input_norm.backward(d_h.view_as(x), x, grads).add_(d_middle)
        return d_x, None, None, None, *grads.in_order()


_apply: Callable[..., Tensor] = _Block.apply


def use_closed_forms(model: Any) -> int:
    """Give the blocks of `model` that are of the kind above their closed forms for training on
    packed rows on a CPU; all else still runs the model's own code. Returns how many they are."""
    decoder = model.get_decoder()
    blocks = getattr(decoder, "layers", ())
    count = 0
    for layer in blocks:
        try:
            block = DecoderBlock.of(layer)
        except (AttributeError, TypeError):
            continue
        own = layer.forward
        closed = partial(_forward, own, block, [p for p in layer.parameters() if p.requires_grad])
        if _agree(own, closed, decoder, block):
            layer.forward = closed
            count += 1
    return count


def _forward(
    own: Callable[..., Any],
    block: DecoderBlock,
    trained: list[nn.Parameter],
    hidden_states: Tensor,
    *args: Any,
    packed: PackedLayout | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Any:
    if (
        packed is not None
        and position_embeddings is not None
        and past_key_values is None
        and torch.is_grad_enabled()
        and hidden_states.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    ):
        parts = packed.blocks_for(block.window)
        return _apply(hidden_states, block, position_embeddings, parts, *trained)
    return own(
        hidden_states,
        *args,
        packed=packed,
        position_embeddings=position_embeddings,
        past_key_values=past_key_values,
        **kwargs,
    )


def _agree(
    own: Callable[..., Any], closed: Callable[..., Any], decoder: Any, block: DecoderBlock
) -> bool:
    """Whether both say the same of a few random vectors, in two packed documents."""
    weight = block.input_norm.weight
    generator = torch.Generator().manual_seed(0)
    shape = (1, len(_PROOF_SEGMENTS), len(weight))
    x = torch.randn(shape, generator=generator).to(weight.dtype).requires_grad_()
    outward = torch.randn(shape, generator=generator).to(weight.dtype)
    segments = torch.tensor([_PROOF_SEGMENTS])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    settings = {
        "position_embeddings": decoder.rotary_emb(x.detach(), positions),
        "position_ids": positions,
    }
    found, layouts = [], (packed_layout(segments), packed_layout(segments))
    for forward, layout in zip((own, closed), layouts, strict=True):
        out = forward(x, packed=layout, **settings)
        if not isinstance(out, Tensor):
            return False
        found.append((out.detach(), *torch.autograd.grad(out, x, outward)))
    if layouts[0].blocks.keys() != layouts[1].blocks.keys():  # windows of other lengths
        return False
    tolerance = _TOLERANCE if weight.dtype == torch.float32 else 0.05
    return all(
        float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())
        for theirs, ours in zip(*found, strict=True)
    )
