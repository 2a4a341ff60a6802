"""From files of conversations to batches: nothing torn apart, nothing dropped without a word."""

from __future__ import annotations

import csv
import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forgellm.data.chat import parallel
from forgellm.data.chat.packing import PackedConversations
from forgellm.data.chat.store import ChatFormat, chat_store
from forgellm.data.prepare import prepare_data, reopen_prepared
from forgellm.data.prepared import PreparedData
from forgellm.data.split import all_documents
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import ConfigError, DataError
from forgellm.paths import Workspace
from forgellm.schema.recipe import parse_recipe
from tiny_tokenizer import CHAT_TEMPLATE
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_conversations


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("w"))
    write_conversations(workspace, "chat")
    return workspace


@pytest.fixture(scope="module")
def tokenizer(workspace: Workspace) -> Tokenizer:
    return Tokenizer.load(workspace.base_models / "tiny")


SEQ_LEN = 128


def prepare(workspace: Workspace, tokenizer: Tokenizer, **fields: Any) -> PreparedData:
    values = {"training_type": "ift", "dataset": "chat", **fields}
    return prepare_data(tiny_recipe(**values), workspace, tokenizer, SEQ_LEN)


def dataset(workspace: Workspace, name: str, **files: str) -> Path:
    folder = workspace.datasets / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def row(asked: str, answered: str) -> str:
    return json.dumps({"prompt": asked, "completion": answered}) + "\n"


def test_each_row_holds_whole_conversations(workspace: Workspace, tokenizer: Tokenizer) -> None:
    data = prepare(workspace, tokenizer, data_mixture_ratio=1.0)
    for number in range(6):
        batch = data.batch(number)
        for tokens, segments, mask, targets in zip(
            batch.tokens, batch.segment_ids, batch.loss_mask, batch.targets, strict=True
        ):
            for segment in range(segments.max() + 1):
                inside = segments == segment
                text = tokenizer.decode(tokens[inside], skip_special=False)
                assert text.startswith("<|im_start|>user\nAfter ")
                learned = tokenizer.decode(targets[inside & (mask > 0)], skip_special=False)
                assert learned.count("<|im_end|>") == 2
                assert "user" not in learned and "After" not in learned
            assert not mask[segments < 0].any()


def test_every_conversation_comes_once_an_epoch(workspace: Workspace, tokenizer: Tokenizer) -> None:
    store = chat_store(
        workspace.datasets / "chat",
        tokenizer,
        ChatFormat(CHAT_TEMPLATE, "assistant", 65),
        workspace.cache / "tokens",
    )
    stream = PackedConversations(store, all_documents(store), 64, seed=1)
    num_rows = int(stream.rows_per_epoch)
    for epoch in range(2):
        seen: Counter[bytes] = Counter()
        for number in range(epoch * num_rows, (epoch + 1) * num_rows):
            batch = stream.row(number)
            for segment in range(batch.segment_ids.max() + 1):
                inside = batch.segment_ids[0] == segment
                seen[batch.tokens[0][inside][:-1].tobytes()] += 1
        assert sum(seen.values()) == len(store.offsets) - 1
    orders = [
        [stream.row(n + e * num_rows).tokens.tobytes() for n in range(num_rows)] for e in (0, 1)
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_little_is_padding(workspace: Workspace, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    rows = "".join(row("w " * int(n), "b " * int(n)) for n in rng.integers(1, 14, 400))
    folder = dataset(workspace, "uneven", rows__jsonl=rows)
    store = chat_store(
        folder, tokenizer, ChatFormat(CHAT_TEMPLATE, "assistant", 65), workspace.cache
    )
    stream = PackedConversations(store, all_documents(store), 64, seed=1)
    assert len(store.tokens) / (stream.rows_per_epoch * 65) > 0.9


def test_the_report_says_what_was_used_cut_and_skipped(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    turns = [("user", "One?"), ("assistant", "Yes."), ("user", "Two?"), ("assistant", "No " * 90)]
    long = json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) + "\n"
    rows = [
        row("Why?", "So."),
        "{broken\n",
        row("Why?", ""),
        long,
        row("Why?", "x " * 200),
        "[1]\n",
    ]
    folder = dataset(workspace, "mixed", rows__jsonl="".join(rows), notes__md="# Not a table")
    store = chat_store(
        folder, tokenizer, ChatFormat(CHAT_TEMPLATE, "assistant", 65), workspace.cache
    )
    assert store.report.documents == 2
    assert store.report.cut == 1
    reasons = {(item.source, item.reason, item.rows) for item in store.report.skipped}
    assert reasons == {
        ("notes.md", "documents are learned with training_type cpt", None),
        ("rows.jsonl", "broken JSON, first at 2", 1),
        ("rows.jsonl", "an empty answer, first at 3", 1),
        ("rows.jsonl", "its first answer ends beyond 65 tokens, first at 5", 1),
        ("rows.jsonl", "a turn is not an object, first at 6", 1),
    }
    first = tokenizer.decode(store.tokens[store.offsets[1] : store.offsets[2]].tolist())
    assert "Yes." in first and "Two" not in first


def test_a_conversation_of_many_turns_keeps_as_many_as_fit(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    turns = [
        {"role": role, "content": f"number {n}."}
        for n in range(60)
        for role in ("user", "assistant")
    ]
    folder = dataset(workspace, "long", rows__jsonl=json.dumps({"messages": turns}) + "\n")
    store = chat_store(
        folder, tokenizer, ChatFormat(CHAT_TEMPLATE, "assistant", 200), workspace.cache
    )
    text = tokenizer.decode(store.tokens.tolist())
    kept = text.count("assistant")
    assert 1 < kept < 60 and store.report.cut == 1
    assert text.rstrip().endswith(f"number {kept - 1}.")
    tokens_of_one = len(store.tokens) / kept
    assert len(store.tokens) <= 200 < len(store.tokens) + 1.5 * tokens_of_one


def test_every_kind_of_file_gives_the_same_tokens(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    pairs = [("Why, then?", "So;\nthus."), ("Wer?", "Ümit, „ja“.")]
    table = [{"question": q, "answer": a} for q, a in pairs]
    found = []
    for kind in ("jsonl", "json", "csv", "tsv", "parquet"):
        folder = dataset(workspace, f"kind-{kind}")
        path = folder / f"rows.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(table), path)
        elif kind == "json":
            path.write_text(json.dumps(table))
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(item) + "\n" for item in table))
        else:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(
                    file, ["question", "answer"], delimiter="\t" if kind == "tsv" else ","
                )
                writer.writeheader()
                writer.writerows(table)
        store = chat_store(
            folder, tokenizer, ChatFormat(CHAT_TEMPLATE, "assistant", 65), workspace.cache
        )
        assert not store.report.skipped
        found.append(store.tokens.tobytes())
    assert len(set(found)) == 1


def test_a_prepared_dataset_is_reopened_from_the_cache(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    data = prepare(workspace, tokenizer)
    recipe = tiny_recipe(training_type="ift", dataset="chat")
    again = reopen_prepared(data.summary, recipe, workspace, tokenizer, SEQ_LEN)
    assert again.summary == data.summary
    for number in range(3):
        assert np.array_equal(again.batch(number).tokens, data.batch(number).tokens)
        assert np.array_equal(again.batch(number).loss_mask, data.batch(number).loss_mask)
    ours = [b.tokens.tobytes() for b in data.validation_batches()]
    assert ours == [b.tokens.tobytes() for b in again.validation_batches()]
    assert ours


def test_held_out_conversations_are_not_trained_on(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    data = prepare(workspace, tokenizer, data_mixture_ratio=1.0, validation_split=0.2)

    def conversations(batches: Any) -> set[bytes]:
        return {
            batch.tokens[r][batch.segment_ids[r] == s].tobytes()
            for batch in batches
            for r in range(len(batch.tokens))
            for s in range(batch.segment_ids[r].max() + 1)
        }

    held_out = conversations(data.validation_batches())
    assert held_out
    assert not held_out & conversations(data.batch(number) for number in range(12))


def test_a_lone_conversation_is_not_torn_apart(workspace: Workspace, tokenizer: Tokenizer) -> None:
    dataset(workspace, "lone", rows__jsonl=row("Why?", "So it is."))
    data = prepare(workspace, tokenizer, dataset="lone", data_mixture_ratio=1.0)
    assert not list(data.validation_batches())
    assert any("none can be held out" in warning for warning in data.warnings)
    assert data.batch(0).num_targets > 0


def test_what_decides_the_tokens_decides_the_cache(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    keys = {
        prepare(workspace, tokenizer, **fields).summary["cache_key"]
        for fields in ({}, {"loss_on": "last"}, {"loss_on": "all"}, {"chat_template": "turns"})
    }
    assert len(keys) == 4


def test_a_template_that_is_not_the_models_own_is_named(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    assert prepare(workspace, tokenizer).summary["chat_template"] is None
    named = prepare(workspace, tokenizer, chat_template="turns").summary["chat_template"]
    assert "### " in named


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"dataset": "notes"}, DataError, "No conversation was found"),
        ({"columns": {"user": "prompt"}}, ConfigError, "columns"),
        ({"loss_on": "user"}, ConfigError, "loss_on"),
    ],
)
def test_what_cannot_be_read_is_said(
    workspace: Workspace, tokenizer: Tokenizer, fields: dict[str, Any], error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        prepare(workspace, tokenizer, **fields)


def test_the_fields_are_a_recipes() -> None:
    recipe = parse_recipe(
        {"model_name": "m", "dataset": "d", "columns": {"user": "q", "assistant": "a"}}
    )
    assert recipe.loss_on == "assistant"


@pytest.mark.parametrize("command", [parallel._COMMAND, ["false"]])
@pytest.mark.parametrize("in_pairs", [False, True])
def test_all_cores_or_one_make_the_same(
    workspace: Workspace,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    in_pairs: bool,
) -> None:
    rows: list[dict[str, Any]]
    rows = [{"prompt": f"{n}?", "chosen": f"Yes {n}.", "rejected": "No."} for n in range(150)]
    if not in_pairs:
        rows = [{"prompt": f"{n}?", "completion": f"Yes {n}." * (n % 7)} for n in range(150)]
    rows = [item | {"remark": number % 2 or None} for number, item in enumerate(rows)]
    folder = dataset(workspace, f"many{in_pairs}", a__jsonl="\n".join(map(json.dumps, rows)))
    days = [datetime.date(2026, 1, 1)] * 2  # no JSON
    columns = {"prompt": ["a", "b"], "day": days}
    columns |= (
        {"chosen": ["c", "d"], "rejected": ["e", "f"]} if in_pairs else {"answer": ["c", "d"]}
    )
    pq.write_table(pa.table(columns), folder / "b.parquet")
    form = ChatFormat(CHAT_TEMPLATE, "last", 65, in_pairs=in_pairs)
    one = chat_store(folder, tokenizer, form, tmp_path / "one")
    monkeypatch.setattr(parallel, "_WORTH_BYTES", 0)
    monkeypatch.setattr(parallel, "num_cores", lambda: 3)
    monkeypatch.setattr(parallel, "_COMMAND", command)
    all_cores = chat_store(folder, tokenizer, form, tmp_path / "all")
    assert one.report == all_cores.report and one.report.documents > 120
    assert {note.reason for note in one.report.notes} == {
        "the column 'remark' is not used",
        "the column 'day' is not used",
    }
    for name in ("tokens", "offsets", "hashes", "trained", "rejected"):
        assert np.array_equal(getattr(one, name), getattr(all_cores, name)), name


def test_what_rows_are_not_used_for_is_in_the_report_and_in_one_warning(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    rows = [{"question": f"{n}?", "answer": f"Yes {n}.", "remark": "x", "id": n} for n in range(9)]
    dataset(workspace, "noted", a__jsonl="\n".join(map(json.dumps, rows)))
    data = prepare(workspace, tokenizer, dataset="noted")
    notes = [(item["source"], item["reason"], item["rows"]) for item in data.summary["notes"]]
    assert notes == [
        ("a.jsonl", "the column 'remark' is not used", 9),
        ("a.jsonl", "the column 'id' is not used (a label)", 9),
    ]
    (warning,) = [warning for warning in data.warnings if "remark" in warning]
    assert "'remark' is not used: 9 rows" in warning and "'id'" in warning
    again = prepare(workspace, tokenizer, dataset="noted")
    assert again.summary["notes"] == data.summary["notes"]  # from the cache
    assert again.warnings == data.warnings


def test_one_odd_row_never_costs_the_others(workspace: Workspace, tokenizer: Tokenizer) -> None:
    odd: list[Any] = [
        {"instruction": "And?", "output": "So.", "history": [["one"]]},
        {"messages": [7]},
        {"prompt": {"a": 1}, "completion": [True]},
        [[]],
        7,
    ]
    text = "\n".join(json.dumps(item) for item in odd) + "\n"
    dataset(workspace, "odd", a__jsonl=text + row("Why?", "So.") * 3)
    data = prepare(workspace, tokenizer, dataset="odd")
    assert data.summary["documents"] == 3
    assert sum(item["rows"] for item in data.summary["skipped"]) == len(odd)
