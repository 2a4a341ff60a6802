"""Losses and log-probabilities of packed batches, and a proof that packing holds for a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from forgellm.data.batches import Batch
from forgellm.engines.base import ScoredToken
from forgellm.engines.torch.attention import MODEL_ERRORS, packed_layout
from forgellm.engines.torch.cross_entropy import (
    chunk_rows,
    linear_cross_entropy,
    target_log_probs,
)
from forgellm.engines.torch.load import logit_scaling
from forgellm.engines.torch.packing import (
    Packing,
    hidden_states,
    packed_hidden_states,
    packing_of,
    set_packing,
)
from forgellm.errors import UnsupportedModel


def loss_sum(model: Any, batch: Batch, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sum of the counted tokens' cross-entropies in nats: a float32 scalar with a gradient."""
    hidden, targets = _counted(model, batch, device)
    scaling = logit_scaling(model)
    hidden, weight = _projected(model, hidden.to(dtype))
    return linear_cross_entropy(
        hidden,
        weight,
        targets,
        softcap=scaling.softcap,
        logit_scale=scaling.logit_scale,
    )


def counted_log_probs(model: Any, batch: Batch, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[N] float32 log-probability of each counted target, row by row, with a gradient."""
    hidden, targets = _counted(model, batch, device)
    scaling = logit_scaling(model)
    hidden, weight = _projected(model, hidden.to(dtype))
    return target_log_probs(
        hidden,
        weight,
        targets,
        softcap=scaling.softcap,
        logit_scale=scaling.logit_scale,
    )


@torch.no_grad()
def batch_log_probs(
    model: Any, batch: Batch, device: torch.device, dtype: torch.dtype
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[B, T] float32 log-probability of each target; 0 where the loss mask is 0."""
    found = counted_log_probs(model, batch, device, dtype)
    result = np.zeros(batch.tokens.shape, dtype=np.float32)
    result[batch.loss_mask > 0] = found.cpu().numpy()
    return result


def _counted(model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Hidden states [N, D] and targets [N] of the tokens that count."""
    segment_ids = torch.from_numpy(batch.segment_ids).to(device)
    tokens = torch.from_numpy(batch.tokens).to(device, torch.int64)
    positions = torch.from_numpy(batch.positions()).to(device, torch.int64)
    hidden = packed_hidden_states(model, tokens, positions, packed_layout(segment_ids))
    flat = torch.from_numpy(np.flatnonzero(batch.loss_mask)).to(device)
    targets = torch.from_numpy(batch.targets).to(device, torch.int64).reshape(-1)[flat]
    hidden = hidden.reshape(-1, hidden.shape[-1])
    return (hidden if len(flat) == len(hidden) else hidden[flat]), targets


def _projected(model: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states [N, D] and the weight [V, D] that makes logits of them. The bias that GPT-J and Phi
    have in that place becomes one more column, which meets a one."""
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is None:
        return hidden, head.weight
    ones = hidden.new_ones(len(hidden), 1)
    return torch.cat((hidden, ones), -1), torch.cat((head.weight, head.bias[:, None]), -1)


def score_text(
    model: Any, ids: list[int], num_top: int, device: torch.device, dtype: torch.dtype
) -> list[ScoredToken]:
    """Each id after the first, in chunks of rows, so that no [T, vocab] logits exist."""
    tokens = torch.tensor([ids], device=device)
    hidden, weight = _projected(model, hidden_states(model, tokens)[0, :-1].to(dtype))
    weight, scaled = weight.to(dtype), logit_scaling(model)
    step = chunk_rows(weight, torch.float32)
    found: list[ScoredToken] = []
    for start in range(0, len(hidden), step):
        logits = scaled((hidden[start : start + step] @ weight.mT).float())
        found += scored_tokens(logits, tokens[0, start + 1 : start + 1 + step], num_top)
    return found


def scored_tokens(logits: Tensor, targets: Tensor, num_top: int) -> list[ScoredToken]:
    """logits [N, V] float32, targets [N]."""
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(-1, targets[:, None])[:, 0].tolist()
    top = log_probs.topk(num_top)
    rows = zip(targets.tolist(), chosen, top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        ScoredToken(token_id, log_prob, tuple(zip(likely, values, strict=True)))
        for token_id, log_prob, likely, values in rows
    ]


def prove_packing(model: Any, device: torch.device, dtype: torch.dtype) -> Packing:
    """Find out how a model can compute packed documents, so that on a few tokens each scores as it
    does alone by the model's own logits. Raises UnsupportedModel where none is right, or our loss
    would not be its own."""
    known = packing_of(model)
    if known is not None:
        return known
    bound = 0.01 if dtype == torch.float32 else 0.5
    problem = ""
    for packing in Packing:
        set_packing(model, packing)
        try:
            difference = _difference_alone(model, device, dtype)
        except MODEL_ERRORS as error:
            problem = f"its code fails with {type(error).__name__}: {error}"
            continue
        if difference < bound:
            return packing
        problem = (
            "their scores differ from those that its own code gives the same documents alone by "
            f"{difference:.3g} nats"
        )
    raise UnsupportedModel(
        f"{type(model).__name__} cannot be trained on packed documents: {problem[:300]}.",
        suggestion="Use a model whose text is read from left to right, as Llama's is.",
    )


@torch.no_grad()
def _difference_alone(model: Any, device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference between a document's packed scores and its scores alone, in nats."""
    vocab_size = int(model.config.get_text_config().vocab_size)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocab_size, (1, 24), dtype=np.int32)
    segment_ids = np.repeat(np.array([[0, 1]], dtype=np.int32), [11, 13], axis=1)
    targets = np.roll(tokens, -1, axis=1)
    mask = np.ones_like(tokens, dtype=np.float32)
    mask[0, [10, 23]] = 0
    packed = batch_log_probs(model, Batch(tokens, targets, mask, segment_ids), device, dtype)
    differences = []
    for start, stop in ((0, 11), (11, 24)):
        ids = torch.from_numpy(tokens[:, start:stop]).to(device, torch.int64)
        logits = model(input_ids=ids, use_cache=False).logits.float()
        alone = logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].cpu().numpy()
        differences.append(float(np.abs(alone - packed[0, start : stop - 1]).max()))
    return float(np.max(differences))
