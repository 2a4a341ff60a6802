"""Losses and log-probabilities of packed batches, and a proof that packing holds for a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from forgellm.data.batches import Batch
from forgellm.engines.base import ScoredToken
from forgellm.engines.torch.attention import packed_layout
from forgellm.engines.torch.cross_entropy import (
    chunk_rows,
    linear_cross_entropy,
    target_log_probs,
)
from forgellm.engines.torch.load import final_hidden_states, logit_scaling
from forgellm.errors import UnsupportedModel


def loss_sum(model: Any, batch: Batch, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sum of the counted tokens' cross-entropies in nats: a float32 scalar with a gradient."""
    hidden, targets = _counted(model, batch, device)
    scaling = logit_scaling(model)
    return linear_cross_entropy(
        hidden.to(dtype),
        model.get_output_embeddings().weight,
        targets,
        softcap=scaling.softcap,
        logit_scale=scaling.logit_scale,
    )


def counted_log_probs(model: Any, batch: Batch, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[N] float32 log-probability of each counted target, row by row, with a gradient."""
    hidden, targets = _counted(model, batch, device)
    scaling = logit_scaling(model)
    return target_log_probs(
        hidden.to(dtype),
        model.get_output_embeddings().weight,
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
    hidden = final_hidden_states(model, tokens, positions, packed=packed_layout(segment_ids))
    flat = torch.from_numpy(np.flatnonzero(batch.loss_mask)).to(device)
    targets = torch.from_numpy(batch.targets).to(device, torch.int64).reshape(-1)[flat]
    hidden = hidden.reshape(-1, hidden.shape[-1])
    return (hidden if len(flat) == len(hidden) else hidden[flat]), targets


def score_text(
    model: Any, ids: list[int], num_top: int, device: torch.device, dtype: torch.dtype
) -> list[ScoredToken]:
    """Each id after the first, in chunks of rows, so that no [T, vocab] logits exist."""
    tokens = torch.tensor([ids], device=device)
    positions = torch.arange(len(ids), device=device)[None]
    hidden = final_hidden_states(model, tokens, positions)[0, :-1].to(dtype)
    weight, scaled = model.get_output_embeddings().weight.to(dtype), logit_scaling(model)
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


@torch.no_grad()
def prove_packing(model: Any, device: torch.device, dtype: torch.dtype, vocab_size: int) -> None:
    """Check on a few tokens that two packed documents score as they do alone, by the model's own
    logits. Raises UnsupportedModel for architectures where packing or our loss would be wrong."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocab_size, (1, 24), dtype=np.int32)
    segment_ids = np.repeat(np.array([[0, 1]], dtype=np.int32), [11, 13], axis=1)
    targets = np.roll(tokens, -1, axis=1)
    mask = np.ones_like(tokens, dtype=np.float32)
    mask[0, [10, 23]] = 0
    packed = batch_log_probs(model, Batch(tokens, targets, mask, segment_ids), device, dtype)
    for start, stop in ((0, 11), (11, 24)):
        ids = torch.from_numpy(tokens[:, start:stop]).to(device, torch.int64)
        logits = model(input_ids=ids, use_cache=False).logits.float()
        alone = logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].cpu().numpy()
        difference = float(np.abs(alone - packed[0, start : stop - 1]).max())
        if not difference < (0.01 if dtype == torch.float32 else 0.5):
            raise UnsupportedModel(
                f"{type(model).__name__} cannot be trained on packed documents: their scores "
                f"differ from those of the same documents alone by {difference:.3g} nats.",
                suggestion="Use a model with standard causal attention.",
            )
