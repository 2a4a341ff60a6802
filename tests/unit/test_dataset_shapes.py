"""Each known shape of dataset is read as its writers mean it, and nothing of a row is lost unsaid."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_templates import FAMILIES
from dataset_shapes import CONVERSATIONS, PREFERENCES, REFUSED
from forgellm.data.chat import shapes
from forgellm.data.chat.encoding import ChatFormat
from forgellm.data.chat.pairs import pair_of, row_encoder
from forgellm.data.chat.rows import RowRefused, conversation_of
from forgellm.data.tokenizer import Tokenizer
from tiny_workspace import build_tiny_workspace


def unused(notes: tuple[str, ...]) -> set[str]:
    """The columns that notes name."""
    assert all(note.startswith("the column '") for note in notes), notes
    return {note.split("'")[1] for note in notes}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_of_each_dataset_is_read(name: str) -> None:
    sample = CONVERSATIONS[name]
    found = conversation_of(sample.row)
    assert (found.turns, found.tools) == (sample.turns, sample.tools)
    assert unused(found.notes) == set(sample.unused)


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_pair_of_each_dataset_is_read(name: str) -> None:
    sample = PREFERENCES[name]
    pair = pair_of(sample.row)
    assert pair.chosen.turns[: pair.num_shared] == sample.shared
    assert [turn["content"] for turn in pair.chosen.turns[pair.num_shared :]] == [sample.chosen]
    assert [turn["content"] for turn in pair.rejected.turns[pair.num_shared :]] == [sample.rejected]
    assert unused(pair.notes) == set(sample.unused)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("parse", [conversation_of, pair_of])
def test_rows_that_would_be_misread_are_refused(name: str, parse: Any) -> None:
    reason = {refusal.name: refusal.reason for refusal in shapes.REFUSALS}[name]
    with pytest.raises(RowRefused) as refused:
        parse(REFUSED[name])
    assert str(refused.value) == reason


def test_every_dataset_that_the_tables_name_has_a_sample() -> None:
    assert {name for shape in shapes.CONVERSATIONS for name in shape.datasets} == set(CONVERSATIONS)
    assert {name for shape in shapes.PREFERENCES for name in shape.datasets} == set(PREFERENCES)
    assert {refusal.name for refusal in shapes.REFUSALS} == set(REFUSED)


# --- what was no text never becomes words -----------------------------------------------------

LETTERS = st.text("abcd ", max_size=5)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(0, 9), st.floats(allow_nan=True), LETTERS,
    st.sampled_from(["<think>a</think>", "[", '["a"]', "Human: a"]),
)  # fmt: skip
KEYS = st.sampled_from(
    ["role", "from", "content", "value", "text", "type", "input", "output", "weight", "train", "name",
     "tool_calls", "function", "arguments", "messages", "reasoning_content", "replies"]
)  # fmt: skip
ROLES = st.sampled_from(["user", "human", "assistant", "gpt", "system", "tool", "owl"])
TURNS = st.fixed_dictionaries(
    {"role": ROLES, "content": SCALARS}, optional={"weight": SCALARS, "tool_calls": SCALARS}
)
JSON = st.recursive(
    st.one_of(SCALARS, TURNS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
COLUMNS = sorted(
    {
        name
        for shape in (*shapes.CONVERSATIONS, *shapes.PREFERENCES)
        for column in (*shape.needs, *shape.also)
        for name in column.names
    }
)


def rows_of(shape: shapes.Shape) -> st.SearchStrategy[dict[str, Any]]:
    """Any JSON in the columns of a shape, and in some others."""
    needed = {column.names[0]: JSON for column in shape.needs}
    also = {column.names[0]: JSON for column in shape.also}
    some = st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=2)
    return st.tuples(st.fixed_dictionaries(needed, optional=also), some).map(lambda t: t[1] | t[0])


def texts_in(value: Any) -> str:
    if isinstance(value, str):
        return value + "\n"
    if isinstance(value, dict):
        return "".join(texts_in(item) for item in value.values())
    if isinstance(value, list):
        return "".join(texts_in(item) for item in value)
    return ""


def check(row: Any, parse: Any) -> None:
    try:
        found = parse(row)
    except RowRefused as refused:
        assert "cannot be read" not in str(refused), (row, refused.__cause__)
        return
    sides = [found.chosen, found.rejected] if parse is pair_of else [found]
    given = texts_in(row)
    for side in sides:
        assert side.turns[-1]["role"] == "assistant"
        for turn in side.turns:
            for word in turn["content"].split():
                assert word in given, (row, side.turns)
            assert turn["content"].strip() or turn["role"] == "tool" or "tool_calls" in turn


@pytest.mark.parametrize("parse", [conversation_of, pair_of])
@pytest.mark.parametrize(
    "shape", [*shapes.CONVERSATIONS, *shapes.PREFERENCES], ids=lambda s: s.needs[0].names[0]
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_json_in_known_columns_gives_turns_of_its_own_text_or_a_reason(
    shape: shapes.Shape, parse: Any, data: st.DataObject
) -> None:
    check(data.draw(rows_of(shape)), parse)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("w"))
    return Tokenizer.load(workspace.base_models / "tiny")


@pytest.mark.parametrize("in_pairs", [False, True])
@pytest.mark.parametrize("family", ["chatml", "qwen3", "gemma"])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_json_is_encoded_or_left_out_with_a_reason_that_is_known(
    tokenizer: Tokenizer, family: str, in_pairs: bool, data: st.DataObject
) -> None:
    kinds = shapes.PREFERENCES if in_pairs else shapes.CONVERSATIONS
    rows = [data.draw(rows_of(data.draw(st.sampled_from(kinds)))), data.draw(JSON)]
    form = ChatFormat(FAMILIES[family][0], "assistant", 200, in_pairs=in_pairs)
    for found in row_encoder(tokenizer, form).encode(rows):
        if isinstance(found, str):
            assert "cannot be read" not in found, rows
        else:
            assert any(found.tokens.trained[1:])


@pytest.mark.parametrize(
    "value", [None, math.nan, 0, 7.5, True, ["a", "b"], {"a": "b"}, b"x", [["a"]]]
)
def test_an_answer_that_is_no_text_is_refused(value: Any) -> None:
    for row in ({"question": "Which?", "answer": value}, {"messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": value}]}):  # fmt: skip
        with pytest.raises(RowRefused, match="the answer|an empty answer"):
            conversation_of(row)
    with pytest.raises(RowRefused, match="the answer|an empty answer"):
        pair_of({"prompt": "Which?", "chosen": "this", "rejected": value})
