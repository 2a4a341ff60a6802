"""Losses on pairs of a chosen and a rejected answer: DPO (Rafailov et al. 2023, arXiv 2305.18290)
and ORPO (Hong et al. 2024, arXiv 2403.07691).

Letters: B rows, K pairs a row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forgellm.data.batches import PairBatch
from forgellm.engines.preference import LEAST_DOUBT
from forgellm.engines.torch.scoring import counted_log_probs
from forgellm.schema.recipe import Recipe


def answer_log_probs(
    model: Any, batch: PairBatch, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """[B, K, 2] float32 sum of the log-probabilities of each answer's tokens, in nats."""
    found = counted_log_probs(model, batch, device, dtype)
    places = torch.from_numpy(batch.answers()[batch.loss_mask > 0]).to(device, torch.int64)
    sums = torch.zeros(batch.reference.size, device=device).index_add(0, places, found)
    return sums.view(batch.reference.shape)


def preference_sums(log_probs: Tensor, batch: PairBatch, recipe: Recipe) -> Tensor:
    """[4] float32: sums over the pairs of the loss, and of what `PreferenceFigures` has the means
    of. Only the loss has a gradient. log_probs [B, K, 2]."""
    device, beta = log_probs.device, recipe.preference_beta
    lengths = torch.from_numpy(batch.answer_lengths()).to(device).clamp(min=1)
    means = log_probs / lengths
    if recipe.training_type == "dpo":
        rewards = beta * (log_probs - torch.from_numpy(batch.reference).to(device))
        losses = -F.logsigmoid(rewards[..., 0] - rewards[..., 1])
    else:
        rewards = beta * means
        log_odds = means - torch.log(-torch.expm1(means.clamp(max=-LEAST_DOUBT)))
        losses = -means[..., 0] - beta * F.logsigmoid(log_odds[..., 0] - log_odds[..., 1])
    margins = (rewards[..., 0] - rewards[..., 1]).detach()
    figures = torch.stack([losses, (margins > 0).float(), margins, means[..., 0].detach()])
    there = torch.from_numpy(batch.pairs >= 0).to(device)
    return torch.where(there, figures, 0).sum((1, 2))
