"""The batches of a run, each a function of its number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from forgellm.data.batches import Batch, PairBatch
from forgellm.data.mixture import Mixture
from forgellm.data.packing import PackedStream
from forgellm.data.split import Spans
from forgellm.data.tokenizer import Tokenizer
from forgellm.schema.recipe import Recipe


class RowStream(Protocol):
    """An endless stream of rows, each a function of its number."""

    def row(self, number: int) -> Batch: ...

    def longest_document_row(self) -> int: ...

    @property
    def rows_per_epoch(self) -> float: ...


@dataclass(frozen=True)
class TokenText:
    """Documents as they are tokenised. `tokens` uint32 [tokens]."""

    tokens: NDArray[np.uint32]
    spans: Spans

    def documents(self, tokenizer: Tokenizer) -> Iterator[str]:
        """Their text, without control tokens."""
        for start, end in zip(self.spans.starts, self.spans.ends, strict=True):
            yield tokenizer.decode(self.tokens[start:end].tolist())


class Texts(NamedTuple):
    """What is trained on and what is held out."""

    train: TokenText
    validation: TokenText
    replay: TokenText | None


@dataclass(frozen=True)
class PreparedData:
    """The batches of a run; each is a function of its number, so a resumed run meets the same.

    Attributes:
        summary: JSON-safe; what the data is, for the run's record and for `reopen_prepared`.
        warnings: for the user, one sentence or two each.
        reference: [pairs, 2], of runs that compare with their start; see `PairBatch`.
    """

    summary: dict[str, Any]
    warnings: list[str]
    texts: Texts
    _recipe: Recipe
    _mixture: Mixture
    _domain: RowStream
    _replay: PackedStream | None
    _validation: Callable[[int], Iterator[Batch]]
    _rank: int = 0
    _num_ranks: int = 1
    reference: NDArray[np.float32] | None = None

    def shared(self, rank: int, num_ranks: int) -> PreparedData:
        """The same batches, of which this process computes only its share of the rows."""
        return replace(self, _rank=rank, _num_ranks=num_ranks)

    def with_replay(self, shares: Iterable[tuple[int, float]]) -> PreparedData:
        """With other shares of replay, each from the iteration after the one it is named with, which
        come in order."""
        mixture = self._mixture
        rows = self._recipe.grad_accum_steps * self._recipe.batch_size
        for iteration, share in shares:
            mixture = mixture.changed(iteration * rows, share)
        return replace(self, _mixture=mixture)

    def with_reference(self, reference: NDArray[np.float32]) -> PreparedData:
        """The same pairs, in whose batches stands what `reference` [pairs, 2] says of each."""
        return replace(self, reference=reference)

    def pair_batches(self) -> Iterator[PairBatch]:
        """Every pair that the run will meet, at least once; the same in all processes."""
        size, num_rows = self._recipe.batch_size, self._mixture.num_rows
        num_rows = min(num_rows, int(self._domain.rows_per_epoch))
        for first in range(0, num_rows, size):
            numbers = range(first, min(first + size, num_rows))
            yield _in_pairs(Batch.stack([self._domain.row(number) for number in numbers]))
        for batch in islice(self._validation(size), self._recipe.val_batches):
            yield _in_pairs(batch)

    def batch(self, index: int) -> Batch:
        """Micro-batch number `index`, from 0; `grad_accum_steps` of them make an iteration."""
        size = self._recipe.batch_size
        numbers = range(index * size, (index + 1) * size)[self._rank :: self._num_ranks]
        return self._referred(Batch.stack([self._row(number) for number in numbers]))

    def validation_batches(self) -> Iterator[Batch]:
        """At most `val_batches`, always the same. The last may have fewer rows than the others, and
        for one of several processes none."""
        batches = self._validation(self._recipe.batch_size)
        for batch in islice(batches, self._recipe.val_batches):
            yield self._referred(batch.rows(self._rank, self._num_ranks))

    def worst_case_batch(self) -> Batch:
        """A full batch of real rows with the longest segments there are."""
        row = self._domain.row(self._domain.longest_document_row())
        return Batch.stack([row] * (self._recipe.batch_size // self._num_ranks))

    def _referred(self, batch: Batch) -> Batch:
        if self.reference is None or not isinstance(batch, PairBatch):
            return batch
        there = batch.pairs[..., None] >= 0
        return replace(batch, reference=np.where(there, self.reference[batch.pairs], 0))

    def _row(self, number: int) -> Batch:
        is_replay, row = self._mixture.source_of(number)
        if is_replay:
            assert self._replay is not None
            return self._replay.row(row)
        return self._domain.row(row)


def _in_pairs(batch: Batch) -> PairBatch:
    assert isinstance(batch, PairBatch)
    return batch
