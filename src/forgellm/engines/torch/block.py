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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from forgellm.engines.torch.attention import (
    MODEL_ERRORS,
    PackedLayout,
    attention_backward,
    attention_forward,
    packed_layout,
)
from forgellm.engines.torch.memory import let_go_of_weight_files
from forgellm.engines.torch.packing import decoder_of
from forgellm.engines.torch.passes.native import passes_for
from forgellm.engines.torch.passes.plain import Passes, Turns
from forgellm.engines.torch.projection import Gradients, Norm, Projection

_PROOF_SEGMENTS = (0, 0, 0, 1, 1, 1, 1, 1)
_TOLERANCE = 1e-4
_LAYERS_COPIED = 8  # between two looks at the process's mappings, some 10 ms each

Angles = tuple[Tensor, Tensor]


class Joint(Protocol):
    """Linear layers of one input as one."""

    @property
    def outputs(self) -> Sequence[slice]: ...


Joined = TypeVar("Joined", bound=Joint)
Layer = TypeVar("Layer")


@dataclass(frozen=True)
class DecoderBlock(Generic[Joined]):
    """The parts of a block, read from its module."""

    input_norm: Norm
    qkv: Joined
    query_norm: Norm | None
    key_norm: Norm | None
    output: Joined
    mlp_norm: Norm
    gate_up: Joined
    down: Joined
    head_size: int
    scale: float
    window: int | None

    @classmethod
    def of(cls, layer: nn.Module, join: Callable[..., Joined]) -> DecoderBlock[Joined]:
        """`join` makes one of the linear layers of one input. Raises AttributeError, TypeError where
        the module has other parts."""
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        if not isinstance(mlp.act_fn, nn.SiLU) and type(mlp.act_fn).__name__ != "SiLUActivation":
            raise TypeError("not gated by SiLU")
        has_norms = hasattr(attention, "q_norm")
        query_norm = Norm.of(attention.q_norm) if has_norms else None
        key_norm = Norm.of(attention.k_norm) if has_norms else None
        if query_norm and key_norm and query_norm.epsilon != key_norm.epsilon:
            raise TypeError("norms of two kinds")
        return cls(
            input_norm=Norm.of(layer.input_layernorm),
            qkv=join(attention.q_proj, attention.k_proj, attention.v_proj),
            query_norm=query_norm,
            key_norm=key_norm,
            output=join(attention.o_proj),
            mlp_norm=Norm.of(layer.post_attention_layernorm),
            gate_up=join(mlp.gate_proj, mlp.up_proj),
            down=join(mlp.down_proj),
            head_size=int(attention.head_dim),
            scale=float(attention.scaling),
            window=getattr(
                attention, "sliding_window", getattr(attention.config, "sliding_window", None)
            ),
        )

    @property
    def joined(self) -> tuple[Joined, ...]:
        return self.qkv, self.output, self.gate_up, self.down

    @property
    def num_heads(self) -> tuple[int, int]:
        """Of queries, and of keys."""
        queries, keys, _ = (w.stop - w.start for w in self.qkv.outputs)
        return queries // self.head_size, keys // self.head_size

    def turns(self, angles: Angles) -> Turns:
        """Of tokens whose angles are [B, T, d]. Raises TypeError where they are not those of a whole
        head."""
        if angles[0].shape[-1] != self.head_size:
            raise TypeError("heads that are turned in part")
        cosines, sines = (
            angle[..., : self.head_size // 2].flatten(0, 1).float().contiguous() for angle in angles
        )
        if self.query_norm is None or self.key_norm is None:
            return Turns(cosines, sines, None, None, 0.0)
        weights = self.query_norm.floats, self.key_norm.floats
        return Turns(cosines, sines, *weights, self.query_norm.epsilon)

    def heads(self, rotated: Tensor, qkv: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views [B, heads, T, d] of queries and keys [N, H + K, d], and of the values in qkv."""
        by_row = rotated.view(rows, -1, *rotated.shape[1:])
        queries, keys = torch.split(by_row, list(self.num_heads), 2)
        values = qkv[:, self.qkv.outputs[2]].view(rows, keys.shape[1], -1, self.head_size)
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)

    def rotate_backward(
        self, passes: Passes, g: Tensor, qkv: Tensor, turns: Turns, out: Tensor, grads: Gradients
    ) -> None:
        """Into the queries' and keys' places in `out` [N, O], from the gradient of them turned."""
        norms = [norm for norm in (self.query_norm, self.key_norm) if norm is not None]
        wants_weight = any(grads.want(norm.weight) for norm in norms)
        found = passes.rotate_backward(g, qkv, turns, self.num_heads, out, wants_weight)
        for norm, d_weight in zip(norms, found or (), strict=False):
            grads.put(norm.weight, d_weight)


class _Block(torch.autograd.Function):
    """x [B, T, D] -> [B, T, D]. `trained` are the block's parameters that want gradients; products
    are computed in `dtype`, sums in that of x. With `again` all is computed again for the backward
    pass, and only x is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        block: DecoderBlock[Projection],
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
        b: DecoderBlock[Projection]
        b, angles, layout, dtype = ctx.settings
        x, *kept = ctx.saved_tensors
        qkv, attended, lse, middle, gate_up, *lows = kept or _computed(x, *ctx.settings)[1]
        passes, grads = passes_for(x.dtype, dtype), Gradients(ctx.trained)
        rows, shape = len(x), x.shape
        x, grad = x.flatten(0, 1), grad.flatten(0, 1)

        def through(projection: Projection, g: Tensor, given: Tensor, low: Tensor | None) -> Tensor:
            d_given, g_low = projection.input_backward(g)
            projection.parameters_backward(g, given, low, g_low, grads)
            return d_given

        g = grad.to(dtype)
        d_inner, g_low = b.down.input_backward(g)
        _, inner = b.down.room(len(x), dtype)
        d_gate_up = passes.swiglu_backward(d_inner, gate_up, inner)
        b.down.parameters_backward(g, inner, lows[3], g_low, grads)
        del d_inner, inner
        h = b.mlp_norm.again(passes, middle, b.gate_up, dtype)
        d_h = through(b.gate_up, d_gate_up, h, lows[2])
        d_middle = b.mlp_norm.backward(passes, d_h, middle, grad, grads)
        del d_gate_up, d_h

        d_attended = through(b.output, d_middle.to(dtype), attended, lows[1])
        turns, d_qkv = b.turns(angles), torch.empty_like(qkv)
        rotated = passes.rotate(qkv, turns, b.num_heads)
        d_rotated = torch.empty_like(rotated)
        attention_backward(
            _by_head(d_attended, b, rows),
            *b.heads(rotated, qkv, rows),
            _by_head(attended, b, rows),
            lse,
            b.scale,
            layout,
            b.heads(d_rotated, d_qkv, rows),
        )
        b.rotate_backward(passes, d_rotated, qkv, turns, d_qkv, grads)

        h, d_x = b.input_norm.again(passes, x, b.qkv, dtype), None
        if ctx.needs_input_grad[0] or b.input_norm.is_trained:
            d_h = through(b.qkv, d_qkv, h, lows[0])
            d_x = b.input_norm.backward(passes, d_h, x, d_middle, grads).view(shape)
        else:
            b.qkv.parameters_backward(d_qkv, h, lows[0], b.qkv.low_backward(d_qkv), grads)
        return d_x, None, None, None, None, None, *grads.in_order()


def _computed(
    x: Tensor,
    block: DecoderBlock[Projection],
    angles: Angles,
    layout: PackedLayout,
    dtype: torch.dtype,
) -> tuple[Tensor, list[Any]]:
    """A block's output, and what its backward pass needs besides x."""
    b, rows, shape, passes = block, len(x), x.shape, passes_for(x.dtype, dtype)
    x = x.flatten(0, 1)
    room, h = b.qkv.room(len(x), dtype)
    b.input_norm.into(h, passes, x)
    qkv, low_qkv = b.qkv(room)
    rotated = passes.rotate(qkv, b.turns(angles), b.num_heads)
    room, attended = b.output.room(len(x), dtype)
    lse = attention_forward(
        *b.heads(rotated, qkv, rows), b.scale, layout, _by_head(attended, b, rows)
    )
    sums, low_out = b.output(room)
    room, h = b.gate_up.room(len(x), dtype)
    middle = passes.add_rms_norm(x, sums, b.mlp_norm.floats, b.mlp_norm.epsilon, h)
    gate_up, low_gate_up = b.gate_up(room)
    room, inner = b.down.room(len(x), dtype)
    passes.swiglu(gate_up, inner)
    out, low_down = b.down(room)
    out = out.add_(middle) if out.dtype == middle.dtype else out + middle
    lows = (low_qkv, low_out, low_gate_up, low_down)
    return out.view(shape), [qkv, attended, lse, middle, gate_up, *lows]


def _by_head(x: Tensor, block: DecoderBlock[Projection], rows: int) -> Tensor:
    """A view [B, H, T, d] of [N, H * d]."""
    return x.view(rows, len(x) // rows, -1, block.head_size).transpose(1, 2)


_apply: Callable[..., Tensor] = _Block.apply


def letting_go(layers: Iterable[Layer]) -> Iterator[Layer]:
    """`layers` in turn, while what is copied of weight files stops counting as memory."""
    for number, layer in enumerate(layers):
        if number and number % _LAYERS_COPIED == 0:
            let_go_of_weight_files()
        yield layer
    let_go_of_weight_files()


def use_closed_forms(model: Any) -> int:
    """Give the blocks of `model` that are of the kind above their closed forms for training on
    packed rows on a CPU; all else still runs the model's own code. Returns how many they are."""
    decoder = decoder_of(model)
    blocks = getattr(decoder, "layers", ())
    count = 0
    for layer in letting_go(blocks):
        try:
            block = DecoderBlock.of(layer, Projection)
            for projection in block.joined:
                projection.join()
            own = layer.forward
            trained = [p for p in layer.parameters() if p.requires_grad]
            closed = partial(_forward, layer, own, block, trained)
            if not _agree(own, closed, decoder, block):
                continue
        except MODEL_ERRORS:
            continue
        layer.forward = closed
        count += 1
    return count


def _forward(
    layer: Any,
    own: Callable[..., Any],
    block: DecoderBlock[Projection],
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
    own: Callable[..., Any],
    closed: Callable[..., Any],
    decoder: Any,
    block: DecoderBlock[Projection],
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
