"""The documents of a packed row kept apart: all in one pass where a model's code allows it, else each
by itself, as plain transformers would compute it.

One pass needs attention that goes by `PackedLayout` and positions that can be given. State-space
layers, sight in chunks, positions from a mask: such a model gets its documents one by one, which is
right for any code and slower only for short ones.

Letters: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forgellm.data.batches import PADDING_SEGMENT
from forgellm.engines.torch.attention import PackedLayout


class Packing(Enum):
    """How a model computes the documents of a row."""

    TOGETHER = auto()
    ONE_BY_ONE = auto()


_PROVEN: WeakKeyDictionary[nn.Module, Packing] = WeakKeyDictionary()


def packing_of(model: Any) -> Packing | None:
    """What was found out of a model; None before it was."""
    return _PROVEN.get(model)


def set_packing(model: Any, packing: Packing) -> None:
    _PROVEN[model] = packing


def packed_hidden_states(
    model: Any, tokens: Tensor, positions: Tensor, layout: PackedLayout
) -> Tensor:
    """[B, T, D] states after the last norm; of padding they mean nothing. tokens, positions [B, T]
    int64."""
    if packing_of(model) is not Packing.ONE_BY_ONE:
        return _states(model, input_ids=tokens, position_ids=positions, packed=layout)
    padding = layout.segment_ids == PADDING_SEGMENT
    found = [
        None
        if padding[row, start]
        else _states(model, input_ids=tokens[row : row + 1, start:stop])[0]
        for row, start, stop in layout.segments
    ]
    width = model.get_output_embeddings().weight.shape[1]
    nothing = torch.zeros(0, width, device=tokens.device)
    like = next((states for states in found if states is not None), nothing)
    parts = [
        like.new_zeros(segment.stop - segment.start, width) if states is None else states
        for segment, states in zip(layout.segments, found, strict=True)
    ]
    return torch.cat(parts).view(*tokens.shape, width)


def hidden_states(model: Any, tokens: Tensor) -> Tensor:
    """[B, T, D] states after the last norm of rows that are one text each. tokens [B, T] int64."""
    return _states(model, input_ids=tokens)


def _states(model: Any, **inputs: Any) -> Tensor:
    return cast(Tensor, decoder_of(model)(use_cache=False, **inputs).last_hidden_state)


def decoder_of(model: Any) -> Any:
    """All of a model but its output head. Some classes name themselves in its place."""
    decoder = model.get_decoder()
    is_decoder = isinstance(decoder, PreTrainedModel) and decoder is not model
    return decoder if is_decoder else model.model
