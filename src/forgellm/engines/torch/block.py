"""A decoder block of the common kind as one autograd function: it keeps less than autograd would, and
every gradient has its closed form.

The kind: root-mean-square norm, attention with rotary positions (queries and keys normed or not),
norm, gated SiLU (Shazeer 2020, arXiv 2002.05202), two residual sums; each linear layer plain or with
LoRA. Norms, rotations and gates are computed again in the backward pass, products are kept, or with
gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) only the block's input.
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
    PackedLayout,
    attention_backward,
    attention_forward,
    packed_layout,
)
from forgellm.engines.torch.projection import Gradients, Kept, Norm, Projection, rotate, rotate_back

_PROOF_SEGMENTS = (0, 0, 0, 1, 1, 1, 1, 1)
_TOLERANCE = 1e-4

Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DecoderBlock:
    """The parts of a block, read from its module."""

    input_norm: Norm
    qkv: Projection
    query_norm: Norm | None
    key_norm: Norm | None
    output: Projection
    mlp_norm: Norm
    gate_up: Projection
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
            qkv=Projection(attention.q_proj, attention.k_proj, attention.v_proj),
            query_norm=Norm.of(attention.q_norm) if has_norms else None,
            key_norm=Norm.of(attention.k_norm) if has_norms else None,
            output=Projection(attention.o_proj),
            mlp_norm=Norm.of(layer.post_attention_layernorm),
            gate_up=Projection(mlp.gate_proj, mlp.up_proj),
            down=Projection(mlp.down_proj),
            head_size=int(attention.head_dim),
            scale=float(attention.scaling),
            window=getattr(
                attention, "sliding_window", getattr(attention.config, "sliding_window", None)
            ),
        )

    def join(self) -> None:
        for projection in (self.qkv, self.output, self.gate_up, self.down):
            projection.join()

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views [B, T, heads, d] of the queries, keys and values in [B, T, O]."""
        q, k, v = (
            qkv[..., where].view(*qkv.shape[:2], -1, self.head_size) for where in self.qkv.outputs
        )
        return q, k, v

    def turned(self, qkv: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, normed where the block does so and rotated, and values: [B, heads, T, d]."""
        q, k, v = self.heads(qkv)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = rotate(q, *angles), rotate(k, *angles)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def turned_backward(
        self, d_q: Tensor, d_k: Tensor, d_v: Tensor, qkv: Tensor, angles: Angles, grads: Gradients
    ) -> Tensor:
        """[N, O] from gradients of what `turned` gave and from what it was given."""
        found = torch.empty_like(qkv)
        out_q, out_k, out_v = self.heads(found)
        rotate_back(d_q.transpose(1, 2), *angles, out=out_q)
        rotate_back(d_k.transpose(1, 2), *angles, out=out_k)
        out_v.copy_(d_v.transpose(1, 2))
        if self.query_norm is not None and self.key_norm is not None:
            q, k, _ = self.heads(qkv)
            out_q.copy_(self.query_norm.backward(out_q, q, grads))
            out_k.copy_(self.key_norm.backward(out_k, k, grads))
        return found.flatten(0, 1)

    def gated(self, gate_up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """silu(gate) [N, F], and views of gate and up in [N, 2F]."""
        gate, up = (gate_up[:, where] for where in self.gate_up.outputs)
        return F.silu(gate), gate, up


class _Block(torch.autograd.Function):
    """x [B, T, D] -> [B, T, D]. `trained` are the block's parameters that want gradients; products
    are computed in `dtype`, sums in that of x. With `again` all is computed again for the backward
    pass, and only x is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        block: DecoderBlock,
        angles: Angles,
        layout: PackedLayout,
        dtype: torch.dtype,
        again: bool,
        *trained: Tensor,
    ) -> Tensor:
        out, kept = _computed(x, block, angles, layout, dtype)
        ctx.save_for_backward(x, *([] if again else kept))
        ctx.settings, ctx.trained = (block, angles, layout, dtype), trained
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        b: DecoderBlock
        b, angles, layout, dtype = ctx.settings
        x, *kept = ctx.saved_tensors
        qkv, attended, lse, middle, gate_up, *flat = kept or _computed(x, *ctx.settings)[1]
        low_qkv, low_out, low_gate_up, low_down = _from_flat(flat)
        grads = Gradients(ctx.trained)

        act, gate, up = b.gated(gate_up)
        g = grad.flatten(0, 1).to(dtype)
        d_inner = b.down.backward(g, act * up, low_down, grads)
        assert d_inner is not None
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = (d_gate_up[:, where] for where in b.gate_up.outputs)
        torch.mul(act, d_inner, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_inner.mul_(up), gate, grad_input=d_gate)
        del act, d_inner
        h = b.mlp_norm(middle, dtype).flatten(0, 1)
        d_h = b.gate_up.backward(d_gate_up, h, low_gate_up, grads)
        assert d_h is not None
        d_middle = b.mlp_norm.backward(d_h.view_as(middle), middle, grads).add_(grad)
        del d_gate_up, d_gate, d_up

        g = d_middle.flatten(0, 1).to(dtype)
        rows = attended.transpose(1, 2).reshape(len(g), -1)
        d_attended = b.output.backward(g, rows, low_out, grads)
        assert d_attended is not None
        d_attended = d_attended.view(attended.transpose(1, 2).shape).transpose(1, 2)
        q, k, v = b.turned(qkv, angles)
        d_heads = attention_backward(d_attended, q, k, v, attended, lse, b.scale, layout)
        d_qkv = b.turned_backward(*d_heads, qkv, angles, grads)

        wants_x = ctx.needs_input_grad[0] or b.input_norm.is_trained
        h = b.input_norm(x, dtype).flatten(0, 1)
        d_h = b.qkv.backward(d_qkv, h, low_qkv, grads, wants_x)
        d_x = None
        if d_h is not None:
            d_x = b.input_norm.backward(d_h.view_as(x), x, grads).add_(d_middle)
        return d_x, None, None, None, None, None, *grads.in_order()


def _computed(
    x: Tensor, block: DecoderBlock, angles: Angles, layout: PackedLayout, dtype: torch.dtype
) -> tuple[Tensor, list[Any]]:
    """A block's output, and what its backward pass needs besides x."""
    b, rows, tokens = block, *x.shape[:2]
    qkv, low_qkv = b.qkv(b.input_norm(x, dtype).flatten(0, 1))
    qkv = qkv.view(rows, tokens, -1)
    attended, lse = attention_forward(*b.turned(qkv, angles), b.scale, layout)
    sums, low_out = b.output(attended.transpose(1, 2).reshape(rows * tokens, -1))
    middle = _added(sums, x)
    gate_up, low_gate_up = b.gate_up(b.mlp_norm(middle, dtype).flatten(0, 1))
    act, _, up = b.gated(gate_up)
    out, low_down = b.down(act.mul_(up))
    lows = (low_qkv, low_out, low_gate_up, low_down)
    return _added(out, middle), [qkv, attended, lse, middle, gate_up, *_flat(lows)]


def _added(sums: Tensor, x: Tensor) -> Tensor:
    """[N, D] and [B, T, D] together, in the type of x, in the place of `sums` if that will do."""
    sums = sums.view_as(x)
    return sums.add_(x) if sums.dtype == x.dtype else x + sums


def _flat(lows: tuple[Kept | None, ...]) -> list[Tensor | None]:
    return [tensor for low in lows for tensor in (low or (None, None, None))]


def _from_flat(flat: list[Tensor | None]) -> list[Kept | None]:
    parts = (flat[at : at + 3] for at in range(0, len(flat), 3))
    return [None if low is None else Kept(low, a, b) for low, a, b in parts]  # type: ignore[arg-type]


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
        trained = [p for p in layer.parameters() if p.requires_grad]
        closed = partial(_forward, layer, own, block, trained)
        if _agree(own, closed, decoder, block):
            block.join()
            layer.forward = closed
            count += 1
    return count


def _forward(
    layer: Any,
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
        and hidden_states.device.type == "cpu"
        and packed.is_seen_whole(block.window)
    ):
        is_mixed = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if is_mixed else hidden_states.dtype
        cos, sin = (angle.to(dtype) for angle in position_embeddings)
        again = bool(getattr(layer, "gradient_checkpointing", False))
        with torch.autocast("cpu", enabled=False):
            return _apply(hidden_states, block, (cos, sin), packed, dtype, again, *trained)
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
    found = []
    for forward in (own, closed):
        out = forward(x, packed=packed_layout(segments), **settings)
        if not isinstance(out, Tensor):
            return False
        found.append((out.detach(), *torch.autograd.grad(out, x, outward)))
    tolerance = _TOLERANCE if weight.dtype == torch.float32 else 0.05
    return all(
        float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())
        for theirs, ours in zip(*found, strict=True)
    )
