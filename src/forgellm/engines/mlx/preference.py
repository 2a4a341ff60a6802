"""Losses on pairs of a chosen and a rejected answer: DPO (Rafailov et al. 2023, arXiv 2305.18290)
and ORPO (Hong et al. 2024, arXiv 2403.07691).

Letters: B rows, K pairs a row, N tokens of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from forgellm.data.batches import PairBatch
from forgellm.engines.preference import LEAST_DOUBT
from forgellm.schema.recipe import Recipe


class DevicePairs(NamedTuple):
    """What a `PairBatch` says of its pairs.

    Attributes:
        answers: [B, T] int32, the answer of each counted target, as a place in [B, K, 2] laid flat.
        lengths: [B, K, 2] float32, counted targets of each answer, at least 1.
        reference: [B, K, 2] float32.
        there: [B, K] bool.
    """

    answers: mx.array
    lengths: mx.array
    reference: mx.array
    there: mx.array


def device_pairs(batch: PairBatch) -> DevicePairs:
    return DevicePairs(
        mx.array(batch.answers()),
        mx.maximum(mx.array(batch.answer_lengths()), 1),
        mx.array(batch.reference),
        mx.array(batch.pairs >= 0),
    )


def answer_sums(log_probs: mx.array, pairs: DevicePairs) -> mx.array:
    """[B, K, 2] float32 sum of the log-probabilities [N] of each answer's tokens, in nats; those of
    other tokens must be 0."""
    sums = mx.zeros(pairs.reference.size).at[pairs.answers.reshape(-1)].add(log_probs)
    return sums.reshape(pairs.reference.shape)


def preference_sums(log_probs: mx.array, pairs: DevicePairs, recipe: Recipe) -> mx.array:
    """[4] float32: sums over the pairs of the loss, and of what `PreferenceFigures` has the means
    of. log_probs [B, K, 2]."""
    beta = recipe.preference_beta
    means = log_probs / pairs.lengths
    if recipe.training_type == "dpo":
        rewards = beta * (log_probs - pairs.reference)
        losses = -nn.log_sigmoid(rewards[..., 0] - rewards[..., 1])
    else:
        rewards = beta * means
        log_odds = means - mx.log(-mx.expm1(mx.minimum(means, -LEAST_DOUBT)))
        losses = -means[..., 0] - beta * nn.log_sigmoid(log_odds[..., 0] - log_odds[..., 1])
    margins = rewards[..., 0] - rewards[..., 1]
    figures = mx.stack([losses, (margins > 0).astype(mx.float32), margins, means[..., 0]])
    return mx.where(pairs.there, figures, 0).sum((1, 2))
