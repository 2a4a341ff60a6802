"""From rows of preference data to packed pairs: every shape, the answers alone learned, no leak."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forgellm.data.batches import PairBatch
from forgellm.data.chat.pairs import pair_of
from forgellm.data.chat.rows import RowRefused
from forgellm.data.prepare import prepare_data, reopen_prepared
from forgellm.data.prepared import PreparedData
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import ConfigError, DataError
from forgellm.paths import Workspace
from forgellm.schema.recipe import Recipe
from preference_pairs import write_preferences
from tiny_workspace import build_tiny_workspace, tiny_recipe

SEQ_LEN = 128


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("w"), num_documents=1)
    write_preferences(workspace, "pairs")
    return workspace


@pytest.fixture(scope="module")
def tokenizer(workspace: Workspace) -> Tokenizer:
    return Tokenizer.load(workspace.base_models / "tiny")


def recipe(**fields: Any) -> Recipe:
    return tiny_recipe(**{"training_type": "dpo", "dataset": "pairs", **fields}).resolved()


def prepare(workspace: Workspace, tokenizer: Tokenizer, **fields: Any) -> PreparedData:
    return prepare_data(recipe(**fields), workspace, tokenizer, SEQ_LEN)


def dataset(workspace: Workspace, name: str, rows: list[Any]) -> str:
    folder = workspace.datasets / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *said] if system else said


def pairs_of(tokenizer: Tokenizer, batch: PairBatch) -> list[tuple[str, str, str, str]]:
    """(all of it, learned) of the chosen and of the rejected conversation of each pair."""
    found = []
    for row, numbers in enumerate(batch.pairs):
        for place in range(int((numbers >= 0).sum())):
            texts: list[str] = []
            for segment in (2 * place, 2 * place + 1):
                inside = batch.segment_ids[row] == segment
                learned = inside & (batch.loss_mask[row] > 0)
                for tokens in (batch.tokens[row][inside], batch.targets[row][learned]):
                    texts.append(tokenizer.decode(tokens.tolist(), skip_special=False))
            found.append((texts[0], texts[1], texts[2], texts[3]))
    return found


CHOSEN, REJECTED = turns("Why?", "So."), turns("Why?", "No.")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {"question": "Why?", "chosen": "So.", "rejected": "No."},
        {"Prompt": "Why?", "Chosen": "So.", "Rejected": "No."},
        {"prompt": CHOSEN[:1], "chosen": CHOSEN[1:], "rejected": REJECTED[1:]},
        {"prompt": "Why?", "chosen": CHOSEN[1:], "rejected": REJECTED[1:]},
        {"prompt": "Why?", "chosen": CHOSEN[1], "rejected": REJECTED[1]},
        {"chosen": CHOSEN, "rejected": REJECTED},
        {"prompt": "Why?", "chosen": CHOSEN, "rejected": REJECTED, "score_chosen": 8.0},
        {"chosen": json.dumps(CHOSEN), "rejected": json.dumps(REJECTED)},
        {
            "chosen": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
            "rejected": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "No."}],
        },
        {
            "chosen": "\n\nHuman: Why?\n\nAssistant: So.",
            "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
        },
    ],
)
def test_every_shape_is_found(row: dict[str, Any]) -> None:
    pair = pair_of(row)
    assert (pair.chosen.turns, pair.rejected.turns, pair.num_shared) == (CHOSEN, REJECTED, 1)


def test_a_system_text_and_named_columns_are_read() -> None:
    row = {"system": "Be brief.", "frage": "Why?", "gut": "So.", "schlecht": "No."}
    pair = pair_of(row, {"prompt": "frage", "chosen": "gut", "rejected": "schlecht"})
    assert pair.chosen.turns == turns("Why?", "So.", system="Be brief.")
    assert pair.num_shared == 2


def test_an_answer_that_looks_like_a_list_is_text() -> None:
    pair = pair_of({"prompt": "Numbers?", "chosen": "[1, 2]", "rejected": "[]"})
    assert [side.turns[-1]["content"] for side in (pair.chosen, pair.rejected)] == ["[1, 2]", "[]"]


def test_what_follows_a_different_answer_belongs_to_it() -> None:
    shared = ("One?", "Yes.", "Two?")
    row = {
        "chosen": turns(*shared, "Good.", "Sure?", "Quite."),
        "rejected": turns(*shared, "Bad."),
    }
    pair = pair_of(row)
    assert pair.num_shared == 3
    assert len(pair.chosen.turns) == 6


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "not an object"),
        ({"prompt": "Why?", "chosen": "So."}, "not both there"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "So."}, "the same"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": " "}, "an empty answer"),
        ({"chosen": "So.", "rejected": "No."}, "no question"),
        ({"chosen": turns("A?", "So."), "rejected": turns("B?", "No.")}, "the same question"),
        (
            {"chosen": turns("A?", "So.", "B?", "C."), "rejected": turns("A?", "So.")},
            "the same question",
        ),
        (
            {"chosen": [*turns("A?"), {"role": "owl", "content": "x"}], "rejected": turns("A?")},
            "unknown role",
        ),
    ],
)
def test_what_is_no_pair_is_refused(row: Any, reason: str) -> None:
    with pytest.raises(RowRefused, match=reason):
        pair_of(row)


def test_rows_hold_whole_pairs_and_answers_alone_are_learned(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    data = prepare(workspace, tokenizer)
    seen = 0
    for batch in data.pair_batches():
        assert isinstance(batch, PairBatch)
        found = pairs_of(tokenizer, batch)
        assert len(found) == batch.num_terms
        assert batch.answer_lengths().sum() == batch.num_targets
        for chosen, good, rejected, bad in found:
            word = chosen.split("After ")[1].split("?")[0]
            assert good == f"{word} and {word}.<|im_end|>"
            assert bad.startswith("no ") and bad.endswith(".<|im_end|>")
            assert rejected.split("?")[0] == chosen.split("?")[0]
        seen += len(found)
    assert seen == data.summary["documents"] == 40


def test_pairs_of_a_question_stay_on_one_side(workspace: Workspace, tokenizer: Tokenizer) -> None:
    rows = [
        {"prompt": f"{question}?", "chosen": f"Yes {n}.", "rejected": f"No {n}."}
        for question in ("One", "Two", "Three", "Four")
        for n in range(5)
    ]
    name = dataset(workspace, "repeated", rows)
    data = prepare(workspace, tokenizer, dataset=name, validation_split=0.25)

    def questions(batches: Any) -> set[str]:
        return {p[0].split("?")[0] for batch in batches for p in pairs_of(tokenizer, batch)}

    held_out = questions(data.validation_batches())
    assert len(held_out) == 1
    assert len(held_out | questions(data.batch(n) for n in range(4))) == 4
    assert not held_out & questions(data.batch(n) for n in range(4))


def test_the_report_says_what_was_used_cut_and_skipped(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    long = ["first " * 60, "Yes.", "Two?"]
    rows: list[Any] = [
        {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
        {
            "chosen": turns(*long, "Good.", system="Brief."),
            "rejected": turns(*long, "Bad.", system="Brief."),
        },
        {"prompt": "Why?", "chosen": "So " * 90, "rejected": "No."},
        {"prompt": "Why?", "chosen": "So.", "rejected": "So."},
        {"text": "nothing"},
    ]
    data = prepare(workspace, tokenizer, dataset=dataset(workspace, "mixed", rows))
    assert (data.summary["documents"], data.summary["cut"]) == (2, 1)
    assert {(item["reason"], item["rows"]) for item in data.summary["skipped"]} == {
        ("its last question and answers take over 129 tokens, first at 3", 1),
        ("chosen and rejected are the same, first at 4", 1),
        (
            "no pair: chosen and rejected are not both there; plain text is learned with training_type cpt, first at 5",
            1,
        ),
    }
    found = [pair for batch in data.pair_batches() for pair in pairs_of(tokenizer, batch)]
    (cut,) = [pair for pair in found if "Two?" in pair[0]]
    assert "first" not in cut[0] and "Brief." in cut[0]
    assert (cut[1], cut[3]) == ("Good.<|im_end|>", "Bad.<|im_end|>")


def test_text_never_becomes_control_tokens(workspace: Workspace, tokenizer: Tokenizer) -> None:
    text = "say <|im_end|> and <|im_start|>user"
    rows = [{"prompt": f"{n} {text}", "chosen": text, "rejected": "no"} for n in range(4)]
    name = dataset(workspace, "hostile", rows)
    data = prepare(workspace, tokenizer, dataset=name, validation_split=0.0)
    end = tokenizer.encode_template("<|im_end|>")
    assert len(end) == 1
    for batch in data.pair_batches():
        for row, numbers in enumerate(batch.pairs):
            for segment in range(2 * int((numbers >= 0).sum())):
                targets = batch.targets[row][batch.segment_ids[row] == segment]
                assert (targets == end[0]).sum() == 1


def test_parquet_and_json_give_the_same_pairs(workspace: Workspace, tokenizer: Tokenizer) -> None:
    rows = [{"chosen": CHOSEN, "rejected": REJECTED}, {"chosen": REJECTED, "rejected": CHOSEN}]
    found = []
    for kind in ("json", "parquet"):
        folder = workspace.datasets / kind
        folder.mkdir()
        if kind == "json":
            (folder / "rows.json").write_text(json.dumps(rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
        data = prepare(workspace, tokenizer, dataset=kind, validation_split=0.0)
        found.append([batch.tokens.tolist() for batch in data.pair_batches()])
    assert found[0] == found[1]


def test_prepared_pairs_are_reopened_from_the_cache(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    data = prepare(workspace, tokenizer)
    again = reopen_prepared(data.summary, recipe(), workspace, tokenizer, SEQ_LEN)
    assert again.summary == data.summary
    for number in range(3):
        ours, theirs = data.batch(number), again.batch(number)
        assert isinstance(ours, PairBatch) and isinstance(theirs, PairBatch)
        assert np.array_equal(ours.tokens, theirs.tokens)
        assert np.array_equal(ours.pairs, theirs.pairs)


def test_batches_carry_what_the_start_said_of_their_pairs(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    data = prepare(workspace, tokenizer)
    numbers = np.arange(40, dtype=np.float32)
    referred = data.with_reference(np.stack([numbers, -numbers], axis=1))
    for batch in [referred.batch(0), *referred.validation_batches()]:
        assert isinstance(batch, PairBatch)
        there = batch.pairs >= 0
        assert np.array_equal(batch.reference[there][:, 0], batch.pairs[there])
        assert not batch.reference[~there].any()


def test_pairs_and_conversations_have_caches_of_their_own(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    rows = [{"prompt": f"{n}?", "completion": "Yes.", "chosen": "Yes.", "rejected": "No."} for n in range(9)]  # fmt: skip
    name = dataset(workspace, "both", rows)
    keys = {
        prepare(workspace, tokenizer, dataset=name, **fields).summary["cache_key"]
        for fields in ({}, {"training_type": "orpo"}, {"training_type": "ift", "data_mixture_ratio": 1.0})
    }  # fmt: skip
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"dataset": "notes"}, DataError, "No pair of answers was found"),
        ({"columns": {"user": "q", "assistant": "a"}}, ConfigError, "both chosen and rejected"),
        ({"preference_beta": 0.0}, ConfigError, "preference_beta"),
    ],
)
def test_what_cannot_be_read_is_said(
    workspace: Workspace, tokenizer: Tokenizer, fields: dict[str, Any], error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        prepare(workspace, tokenizer, **fields)


def test_preferences_are_learned_slowly_and_without_replay() -> None:
    rates = [recipe(learning_rate=None, fine_tune_type=kind).learning_rate for kind in ("lora", "full")]  # fmt: skip
    assert rates == pytest.approx([1e-5, 1e-6])
    assert recipe().data_mixture_ratio == 1.0
