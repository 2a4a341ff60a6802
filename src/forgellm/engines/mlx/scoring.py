"""Losses and log-probabilities of packed batches, and a proof that packing holds for a model."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from forgellm.data.batches import Batch
from forgellm.engines.base import ScoredToken
from forgellm.engines.mlx.cross_entropy import chunk_rows, chunked_losses
from forgellm.engines.mlx.load import SplitModel
from forgellm.engines.mlx.packing import packed_caches
from forgellm.errors import UnsupportedModel


def device_batch(batch: Batch) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """tokens, targets [B, T] int32; loss_mask [B, T] float32; segment_ids [B, T] int32."""
    arrays = (batch.tokens, batch.targets, batch.loss_mask, batch.segment_ids)
    tokens, targets, loss_mask, segment_ids = map(mx.array, arrays)
    return tokens, targets, loss_mask, segment_ids


def packed_hidden_states(split: SplitModel, tokens: mx.array, segment_ids: mx.array) -> mx.array:
    """[B*T, D] states after the last norm. tokens, segment_ids [B, T] int."""
    caches = packed_caches(segment_ids, len(split.model.layers))
    hidden = split.trunk(tokens, caches)
    return hidden.reshape(-1, hidden.shape[-1])


def batch_log_probs(split: SplitModel, batch: Batch, vocab_size: int) -> NDArray[np.float32]:
    """[B, T] log-probability of each target; 0 where the loss mask is 0."""
    tokens, targets, loss_mask, segment_ids = device_batch(batch)
    hidden = packed_hidden_states(split, tokens, segment_ids)
    rows = chunk_rows(vocab_size)
    losses = chunked_losses(lambda _, h: split.head(h), {}, hidden, targets.reshape(-1), rows)
    found = -losses.reshape(tokens.shape) * loss_mask
    return np.array(found, dtype=np.float32)


def score_text(
    split: SplitModel, ids: list[int], num_top: int, vocab_size: int
) -> list[ScoredToken]:
    """Each id after the first, in chunks of rows, so that no [T, vocab] logits exist."""
    hidden = split.trunk(mx.array([ids]), None)[0, :-1]
    rows = chunk_rows(vocab_size)
    found: list[ScoredToken] = []
    for start in range(0, hidden.shape[0], rows):
        logits = split.head(hidden[start : start + rows])
        found += scored_tokens(logits, ids[start + 1 : start + 1 + rows], num_top)
    return found


def scored_tokens(logits: mx.array, chosen: list[int], num_top: int) -> list[ScoredToken]:
    """logits [N, V]; `chosen` the N tokens that stand there."""
    logits = logits.astype(mx.float32)
    log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    own = mx.take_along_axis(log_probs, mx.array(chosen)[:, None], axis=-1)[:, 0].tolist()
    top: list[tuple[tuple[int, float], ...]] = [()] * len(chosen)
    if num_top:
        likely = mx.argsort(-log_probs, axis=-1)[:, :num_top]
        values = mx.take_along_axis(log_probs, likely, axis=-1)
        pairs = zip(likely.tolist(), values.tolist(), strict=True)
        top = [tuple(zip(ids, scores, strict=True)) for ids, scores in pairs]
    return [ScoredToken(*item) for item in zip(chosen, own, top, strict=True)]


def prove_packing(split: SplitModel, dtype: mx.Dtype, vocab_size: int, batch_size: int) -> None:
    """Check on a few tokens that packed documents score as they do alone, by the model's own
    logits. Raises UnsupportedModel for architectures where packing or our loss would be wrong."""
    batch = _two_documents_a_row(min(2, batch_size), vocab_size)
    problem: Any
    try:
        packed = batch_log_probs(split, batch, vocab_size)
        difference = max(
            _difference_alone(split, batch, packed, row, start, stop)
            for row, cut in enumerate(_CUTS[: len(batch.tokens)])
            for start, stop in ((0, cut), (cut, _LENGTH))
        )
        bound = 0.01 if dtype == mx.float32 else 0.5
        problem = None if difference < bound else f"scores differ by {difference:.3g} nats"
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
        problem = f"its layers keep more than keys and values, or keep them otherwise ({error})"
    if problem is not None:
        raise UnsupportedModel(
            f"{type(split.model).__module__.rpartition('.')[2]} models cannot be trained on packed "
            f"documents here: {problem}.",
            suggestion="Use a model with standard causal attention, the torch engine, "
            "or batch_size 1 with grad_accum_steps.",
        )


_LENGTH = 24
_CUTS = (11, 17)


def _two_documents_a_row(num_rows: int, vocab_size: int) -> Batch:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocab_size, (num_rows, _LENGTH), dtype=np.int32)
    cuts = np.array(_CUTS[:num_rows])[:, None]
    columns = np.arange(_LENGTH)[None, :]
    loss_mask = ((columns != cuts - 1) & (columns != _LENGTH - 1)).astype(np.float32)
    segment_ids = (columns >= cuts).astype(np.int32)
    return Batch(tokens, np.roll(tokens, -1, axis=1), loss_mask, segment_ids)


def _difference_alone(
    split: SplitModel, batch: Batch, packed: NDArray[np.float32], row: int, start: int, stop: int
) -> float:
    """The largest difference between a document's packed scores and its scores alone, in nats."""
    ids = batch.tokens[row, start:stop].tolist()
    logits = split.model(mx.array([ids]))[0, :-1]
    alone = [item.log_prob for item in scored_tokens(logits, ids[1:], 0)]
    return float(np.abs(np.array(alone) - packed[row, start : stop - 1]).max())
