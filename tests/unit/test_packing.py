from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from forgellm.data.batches import Batch
from forgellm.data.packing import PackedStream, validation_rows
from forgellm.data.split import Spans

DOCUMENT_LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
ROW_LENGTHS = st.integers(1, 30)


def make(lengths: list[int]) -> tuple[NDArray[np.uint32], Spans]:
    """Documents whose tokens are all different, so that a token names its place."""
    ends = np.cumsum(lengths)
    return np.arange(100, 100 + ends[-1], dtype=np.uint32), Spans(ends - lengths, ends)


def slow_stream(stream: PackedStream, num_tokens: int) -> list[tuple[int, int]]:
    """The first (token, number of its document) pairs, by walking every document in order."""
    pairs: list[tuple[int, int]] = []
    epoch = document = 0
    while len(pairs) < num_tokens:
        order, _ = stream._shuffled(epoch)
        for number in order:
            start, end = stream.spans.starts[number], stream.spans.ends[number]
            pairs += [(int(token), document) for token in stream.tokens[start:end]]
            document += 1
        epoch += 1
    return pairs


def slow_row(pairs: list[tuple[int, int]], row: int, seq_len: int) -> dict[str, list[float]]:
    """One row, a token at a time."""
    expected: dict[str, list[float]] = {"tokens": [], "targets": [], "mask": [], "segments": []}
    segment = 0
    for index in range(row * seq_len, row * seq_len + seq_len):
        (token, document), (following, next_document) = pairs[index], pairs[index + 1]
        if index > row * seq_len and document != pairs[index - 1][1]:
            segment += 1
        same = document == next_document
        expected["tokens"].append(token)
        expected["targets"].append(following if same else 0)
        expected["mask"].append(1.0 if same else 0.0)
        expected["segments"].append(segment)
    return expected


def as_lists(batch: Batch, row: int) -> dict[str, list[float]]:
    return {
        "tokens": batch.tokens[row].tolist(),
        "targets": batch.targets[row].tolist(),
        "mask": batch.loss_mask[row].tolist(),
        "segments": batch.segment_ids[row].tolist(),
    }


@settings(max_examples=200, deadline=None)
@given(DOCUMENT_LENGTHS, ROW_LENGTHS, st.integers(0, 5), st.randoms())
def test_rows_equal_the_slow_walk(lengths: list[int], seq_len: int, seed: int, rng: object) -> None:
    tokens, spans = make(lengths)
    stream = PackedStream(tokens, spans, seq_len, seed)
    pairs = slow_stream(stream, 12 * seq_len + 1)
    numbers = list(range(12))
    rng.shuffle(numbers)  # type: ignore[attr-defined]
    for number in numbers:
        assert as_lists(stream.row(number), 0) == slow_row(pairs, number, seq_len)


@settings(max_examples=100, deadline=None)
@given(DOCUMENT_LENGTHS, ROW_LENGTHS, st.integers(1, 3))
def test_each_token_but_the_first_is_a_target_once_an_epoch(
    lengths: list[int], seq_len: int, epochs: int
) -> None:
    # Repeating the documents a multiple of seq_len times makes rows and epochs end together.
    tokens, spans = make(lengths * seq_len)
    stream = PackedStream(tokens, spans, seq_len, seed=3)
    counted: Counter[int] = Counter()
    for number in range(epochs * stream.epoch_tokens // seq_len):
        row = stream.row(number)
        counted.update(row.targets[row.loss_mask == 1].tolist())
    firsts = set(tokens[spans.starts].tolist())
    assert counted == {token: epochs for token in tokens.tolist() if token not in firsts}


@settings(max_examples=100, deadline=None)
@given(DOCUMENT_LENGTHS, ROW_LENGTHS, st.integers(1, 4))
def test_validation_passes_once_and_pads_the_end(
    lengths: list[int], seq_len: int, batch_size: int
) -> None:
    tokens, spans = make(lengths)
    batches = list(validation_rows(tokens, spans, seq_len, batch_size))
    assert all(batch.tokens.shape[0] == batch_size for batch in batches[:-1])
    inputs, targets = [], []
    for batch in batches:
        real = batch.segment_ids >= 0
        inputs += batch.tokens[real].tolist()
        targets += batch.targets[batch.loss_mask == 1].tolist()
        assert not batch.loss_mask[~real].any() and not batch.tokens[~real].any()
    firsts = set(tokens[spans.starts].tolist())
    assert inputs in (tokens.tolist(), tokens[:-1].tolist())
    assert targets == [token for token in tokens.tolist() if token not in firsts]


def test_validation_of_nothing_is_nothing() -> None:
    tokens, spans = make([4])
    assert list(validation_rows(tokens, Spans(spans.starts[:0], spans.ends[:0]), 8, 2)) == []


def test_types_and_shapes_are_those_of_a_batch() -> None:
    tokens, spans = make([5, 7])
    batch = PackedStream(tokens, spans, 8, 0).row(1)
    arrays = (batch.tokens, batch.targets, batch.loss_mask, batch.segment_ids)
    assert [array.shape for array in arrays] == [(1, 8)] * 4
    assert [array.dtype for array in arrays] == [np.int32, np.int32, np.float32, np.int32]


def test_order_differs_by_epoch_and_seed_but_repeats() -> None:
    tokens, spans = make([1] * 50)

    def epoch(number: int, seed: int) -> list[int]:
        return PackedStream(tokens, spans, 50, seed).row(number).tokens[0].tolist()

    orders = [epoch(0, 1), epoch(1, 1), epoch(0, 2)]
    assert all(sorted(order) == tokens.tolist() for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert epoch(1, 1) == orders[1]


def test_order_never_changes_between_versions() -> None:
    """A resumed run relies on it: these numbers may not change with numpy or with us."""
    tokens, spans = make([1] * 8)
    row = PackedStream(tokens, spans, 16, seed=42).row(0)
    assert (row.tokens[0] - 100).tolist() == [4, 1, 3, 6, 0, 7, 2, 5, 1, 2, 5, 3, 6, 0, 4, 7]


def test_longest_document_fills_the_worst_row() -> None:
    tokens, spans = make([3, 4, 50, 2, 9])
    stream = PackedStream(tokens, spans, 16, seed=0)
    batch = stream.row(stream.longest_document_row())
    assert not batch.segment_ids.any() and batch.loss_mask.all()
