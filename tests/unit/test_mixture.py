import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgellm.data.documents import ReadReport
from forgellm.data.mixture import Mixture, plan_mixture
from forgellm.data.split import all_documents, split_documents
from forgellm.data.token_store import TokenStore


@given(st.integers(1, 300), st.data())
def test_replay_is_spread_evenly_and_each_source_keeps_its_order(
    num_rows: int, data: st.DataObject
) -> None:
    num_replay = data.draw(st.integers(0, num_rows - 1))
    mixture = Mixture(num_rows, num_replay)
    rows = [mixture.source_of(row) for row in range(num_rows)]
    assert [row for replay, row in rows if replay] == list(range(num_replay))
    assert [row for replay, row in rows if not replay] == list(range(num_rows - num_replay))
    for done in range(1, num_rows + 1):
        so_far = sum(replay for replay, _ in rows[:done])
        assert so_far == done * num_replay // num_rows


@pytest.mark.parametrize(
    ("ratio", "replay_rows"), [(1.0, 0), (0.95, 50), (0.5, 500), (0.001, 999), (1e-9, 999)]
)
def test_share_of_rows_is_the_ratio(ratio: float, replay_rows: int) -> None:
    mixture, warning = plan_mixture(1000, ratio, replay_tokens=10**9, seq_len=64)
    assert mixture.num_replay_rows == replay_rows and warning is None
    assert mixture.achieved_ratio == pytest.approx(1 - replay_rows / 1000)


def test_replay_is_passed_over_at_most_four_times() -> None:
    mixture, warning = plan_mixture(1000, 0.5, replay_tokens=1000, seq_len=64)
    assert mixture.num_replay_rows == 62  # 4 * 1000 tokens are 62.5 rows
    assert mixture.achieved_ratio == pytest.approx(0.938)
    assert warning is not None and "replay_dataset" in warning and "93.8 %" in warning


def make_store(texts: str) -> TokenStore:
    """A store with a document of 10 tokens for each letter; equal letters are equal documents."""
    offsets = np.arange(len(texts) + 1, dtype=np.int64) * 10
    hashes = np.array([[ord(letter)] * 16 for letter in texts], dtype=np.uint8).reshape(-1, 16)
    tokens = np.arange(offsets[-1], dtype=np.uint32)
    return TokenStore("key", "fingerprint", tokens, offsets, hashes, ReadReport())


def sides(texts: str, share: float, seed: int = 0) -> tuple[str, str]:
    split = split_documents(make_store(texts), share, seed)
    train = "".join(texts[start // 10] for start in split.train.starts)
    return train, "".join(texts[start // 10] for start in split.validation.starts)


ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@given(
    st.text(ALPHABET, min_size=2, max_size=60).filter(lambda text: len(set(text)) > 1),
    st.floats(0.001, 0.5),
    st.integers(0, 2**31 - 1),
)
def test_sides_are_disjoint_complete_and_never_empty(texts: str, share: float, seed: int) -> None:
    train, validation = sides(texts, share, seed)
    assert sorted(train + validation) == sorted(texts)
    assert train and validation
    assert not set(train) & set(validation)


@pytest.mark.parametrize(("share", "expected"), [(0.1, 3), (0.001, 1), (0.5, 13)])
def test_share_of_distinct_documents_is_rounded_up(share: float, expected: int) -> None:
    assert len(sides(ALPHABET, share)[1]) == expected


def test_split_depends_on_seed_and_texts_not_on_their_order() -> None:
    first = set(sides(ALPHABET, 0.3, seed=1)[1])
    assert first == set(sides(ALPHABET[::-1], 0.3, seed=1)[1])
    assert first != set(sides(ALPHABET, 0.3, seed=2)[1])


def test_most_documents_stay_on_their_side_when_one_is_added() -> None:
    before, after = (set(sides(texts, 0.3)[1]) for texts in (ALPHABET, ALPHABET + "A"))
    assert len(before - after) <= 1


def test_many_copies_of_a_text_are_not_held_out_for_a_few() -> None:
    for seed in range(20):
        assert "z" not in sides("z" * 30 + "abc", 0.1, seed)[1]


def test_single_document_gives_its_tail() -> None:
    split = split_documents(make_store("a"), 0.25, 0)
    assert (split.train.starts[0], split.train.ends[0]) == (0, 7)
    assert (split.validation.starts[0], split.validation.ends[0]) == (7, 10)
    assert "single document" in split.warnings[0]


def test_copies_of_a_single_document_all_lose_the_tail() -> None:
    split = split_documents(make_store("aaa"), 0.2, 0)
    assert split.train.ends.tolist() == [8, 18, 28]
    assert len(split.validation) == 1 and split.validation.num_tokens == 2


def test_no_validation_warns() -> None:
    split = split_documents(make_store("abc"), 0, 0)
    assert len(split.train) == 3 and len(split.validation) == 0
    assert "overfitting" in split.warnings[0]


def test_held_out_documents_can_be_kept_from_replay() -> None:
    store = make_store("abcd")
    split = split_documents(store, 0.5, 0)
    replayed = all_documents(store, excluded=split.held_out)
    assert replayed.starts.tolist() == split.train.starts.tolist()
    assert len(split.held_out) == 2


@given(st.integers(2, 200), st.data())
def test_a_changed_share_leaves_the_rows_before_it_and_every_order_alone(
    num_rows: int, data: st.DataObject
) -> None:
    most = data.draw(st.integers(0, 2 * num_rows))
    first = Mixture(num_rows, data.draw(st.integers(0, min(most, num_rows - 1))), most)
    starts = sorted(data.draw(st.lists(st.integers(0, num_rows), max_size=4)))
    mixture = first
    for start in starts:
        share = data.draw(st.floats(0, 1))
        earlier, mixture = mixture, mixture.changed(start, share)
        rows = [mixture.source_of(row) for row in range(num_rows)]
        assert rows[:start] == [earlier.source_of(row) for row in range(start)]
        replay = [row for is_replay, row in rows if is_replay]
        assert replay == list(range(mixture.num_replay_rows))
        own = [row for is_replay, row in rows if not is_replay]
        assert own == list(range(num_rows - mixture.num_replay_rows))
        assert len(replay) <= most
        if start < num_rows and most >= 2 * num_rows:
            after = sum(is_replay for is_replay, _ in rows[start:])
            assert after == round((num_rows - start) * share)
