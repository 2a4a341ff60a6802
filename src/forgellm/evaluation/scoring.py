"""Log-likelihoods of many short texts at once, packed into rows so that no work is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forgellm.data.batches import PADDING_SEGMENT, Batch
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine

ROW_TOKENS = 512
ROWS_PER_BATCH = 4


@dataclass(frozen=True)
class Passage:
    """Token ids, of which those from `first_counted` (at least 1) on are scored."""

    ids: Sequence[int]
    first_counted: int = 1


@dataclass(frozen=True)
class Likelihood:
    """Sum of the log-probabilities of `num_tokens` tokens, in nats."""

    log_prob: float
    num_tokens: int


def mean_loss(found: Iterable[Likelihood]) -> float:
    """Mean cross-entropy in nats per token; NaN without tokens."""
    scored = list(found)
    num_tokens = sum(item.num_tokens for item in scored)
    return -sum(item.log_prob for item in scored) / num_tokens if num_tokens else float("nan")


def no_step() -> None:
    pass


def likelihoods(
    engine: GenerateEngine,
    passages: Sequence[Passage],
    on_step: Callable[[], None] = no_step,
) -> list[Likelihood]:
    """Score each passage on its own, as if nothing stood beside it in its row.

    `on_step` is called before each batch, and may end the work with an exception.
    """
    found = []
    for batch, rows in _batches(passages):
        on_step()
        log_probs = engine.token_log_probs(batch)
        for row, members in enumerate(rows):
            segments = batch.segment_ids[row]
            for segment in range(members):
                inside = (segments == segment) & (batch.loss_mask[row] > 0)
                total = float(log_probs[row][inside].sum(dtype=np.float64))
                found.append(Likelihood(total, int(inside.sum())))
    return found


def windows(tokenizer: Tokenizer, text: str, length: int = ROW_TOKENS) -> list[Passage]:
    """A document as passages of at most `length` tokens, ended as in training."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = [*start, *tokenizer.encode(text), tokenizer.document_end_id]
    cut = [ids[i : i + length] for i in range(0, len(ids), length)]
    return [Passage(part) for part in cut if len(part) > 1]


def _batches(passages: Sequence[Passage]) -> Iterator[tuple[Batch, list[int]]]:
    """Batches and, for each of their rows, the number of passages in it, in order."""
    rows: list[list[Passage]] = []
    room = 0
    for passage in passages:
        if not rows or len(passage.ids) > room:
            rows.append([])
            room = max(ROW_TOKENS, len(passage.ids))
        rows[-1].append(passage)
        room -= len(passage.ids)
    for start in range(0, len(rows), ROWS_PER_BATCH):
        group = rows[start : start + ROWS_PER_BATCH]
        yield _batch(group), [len(row) for row in group]


def _batch(rows: Sequence[Sequence[Passage]]) -> Batch:
    width = max(sum(len(p.ids) for p in row) for row in rows)
    tokens: NDArray[np.int32] = np.zeros((len(rows), width), dtype=np.int32)
    targets = np.zeros_like(tokens)
    mask = np.zeros(tokens.shape, dtype=np.float32)
    segments = np.full_like(tokens, PADDING_SEGMENT)
    for row, members in enumerate(rows):
        start = 0
        for segment, passage in enumerate(members):
            end = start + len(passage.ids)
            tokens[row, start:end] = passage.ids
            segments[row, start:end] = segment
            targets[row, start : end - 1] = passage.ids[1:]
            mask[row, start + passage.first_counted - 1 : end - 1] = 1
            start = end
    return Batch(tokens, targets, mask, segments)
