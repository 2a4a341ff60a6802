import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgellm.data.batches import Batch
from forgellm.data.datasets import list_datasets
from forgellm.data.prepare import prepare_data, reopen_prepared
from forgellm.data.prepared import PreparedData
from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import ConfigError, DataError, DatasetNotFound
from forgellm.paths import Workspace
from forgellm.schema.recipe import Recipe, parse_recipe
from tiny_tokenizer import TRAINING_TEXT, build_tiny_tokenizer

SEQ_LEN = 32
ODD_ENDINGS = ["\r\n", "  \t\n", "\n\n\n", " ❄️👩‍👩‍👧", "\u00a0", "<|im_end|>", "\n\tx = {}\n"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Forty small documents in `dataset/mill`."""
    workspace = Workspace(tmp_path / "workspace")
    folder = workspace.datasets / "mill"
    folder.mkdir(parents=True)
    for number, text in mill_documents().items():
        (folder / number).write_bytes(text.encode())
    return workspace


def mill_documents() -> dict[str, str]:
    return {
        f"{number:02}.md": f"{number} {TRAINING_TEXT[number * 7 : number * 20 + 9]}"
        + ODD_ENDINGS[number % len(ODD_ENDINGS)]
        for number in range(40)
    }


def recipe(**changes: Any) -> Recipe:
    values = {"model_name": "m", "dataset": "mill", "max_iterations": 50, "batch_size": 3}
    return parse_recipe(values | changes).resolved()


def prepare(workspace: Workspace, tokenizer: Tokenizer, **changes: Any) -> PreparedData:
    return prepare_data(recipe(**changes), workspace, tokenizer, SEQ_LEN)


def same(first: Batch, second: Batch) -> bool:
    names = ("tokens", "targets", "loss_mask", "segment_ids")
    return all(np.array_equal(getattr(first, n), getattr(second, n)) for n in names)


def test_packed_tokens_are_the_documents_byte_for_byte(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    data = prepare(workspace, tokenizer, data_mixture_ratio=1.0, validation_split=0)
    tokens_per_epoch = data.summary["train_tokens"]
    stream: list[int] = []
    while len(stream) < tokens_per_epoch:
        stream += data.batch(len(stream) // (3 * SEQ_LEN)).tokens.ravel().tolist()
    text = tokenizer.decode(stream[:tokens_per_epoch], skip_special=False)
    assert sorted(text.split("<|endoftext|>")[:-1]) == sorted(mill_documents().values())


def test_validation_documents_are_never_trained_on(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    data = prepare(workspace, tokenizer, validation_split=0.2, replay_dataset="general")
    held_out = held_out_texts(data, tokenizer)
    assert len(held_out) == 8 == data.summary["validation_documents"]
    trained = "".join(
        tokenizer.decode(row, skip_special=False)
        for index in range(50)
        for row in data.batch(index).tokens
    )
    assert not any(text in trained for text in held_out if len(text) > 40)


@pytest.fixture(autouse=True)
def general(workspace: Workspace) -> None:
    """A replay dataset that holds a copy of the whole domain, as a careless user's might."""
    folder = workspace.datasets / "general"
    shutil.copytree(workspace.datasets / "mill", folder / "copy")
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"General text {number}. " * 20)


def held_out_texts(data: PreparedData, tokenizer: Tokenizer) -> list[str]:
    stream: list[int] = []
    for batch in data.validation_batches():
        stream += batch.tokens[batch.segment_ids >= 0].tolist()
    text = tokenizer.decode(stream, skip_special=False)
    return [part for part in text.split("<|endoftext|>") if part]


def test_batches_repeat_in_any_order(workspace: Workspace, tokenizer: Tokenizer) -> None:
    first = prepare(workspace, tokenizer)
    second = prepare(workspace, tokenizer)
    batches = [first.batch(index) for index in range(50)]
    assert all(same(second.batch(index), batches[index]) for index in reversed(range(50)))
    pairs = zip(first.validation_batches(), second.validation_batches(), strict=True)
    assert all(same(one, other) for one, other in pairs)
    assert not same(prepare(workspace, tokenizer, seed=7).batch(0), batches[0])


def test_every_batch_is_full(workspace: Workspace, tokenizer: Tokenizer) -> None:
    data = prepare(workspace, tokenizer)
    for batch in [data.batch(0), data.batch(49), data.worst_case_batch()]:
        assert batch.tokens.shape == (3, SEQ_LEN)
        assert (batch.segment_ids >= 0).all()
    assert data.worst_case_batch().loss_mask.all()  # one document fills the rows


def test_validation_is_capped(workspace: Workspace, tokenizer: Tokenizer) -> None:
    everything = list(prepare(workspace, tokenizer, val_batches=1000).validation_batches())
    capped = list(prepare(workspace, tokenizer, val_batches=2).validation_batches())
    assert len(everything) > 2 == len(capped)
    assert all(same(one, other) for one, other in zip(capped, everything, strict=False))


def test_shipped_text_is_replayed_in_its_share(workspace: Workspace, tokenizer: Tokenizer) -> None:
    data = prepare(workspace, tokenizer, data_mixture_ratio=0.8)
    assert data.summary["replay_source"] == "shipped"
    assert data.summary["replay_rows"] == 30 and data.summary["rows"] == 150
    assert data.summary["achieved_mixture_ratio"] == 0.8
    assert not data.warnings
    domain_only = prepare(workspace, tokenizer, data_mixture_ratio=1.0)
    domain_rows = {row.tobytes() for i in range(50) for row in domain_only.batch(i).tokens}
    rows = [row.tobytes() for i in range(50) for row in data.batch(i).tokens]
    assert [row not in domain_rows for row in rows] == [n % 5 == 4 for n in range(150)]


def test_too_little_replay_is_capped_with_a_warning(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    small = workspace.datasets / "small"
    small.mkdir()
    (small / "a.txt").write_text("A little general text.")
    data = prepare(workspace, tokenizer, data_mixture_ratio=0.5, replay_dataset="dataset/small")
    tokens = data.summary["replay_tokens"]
    assert data.summary["replay_rows"] == 4 * tokens // SEQ_LEN < 75
    assert data.summary["requested_mixture_ratio"] == 0.5
    assert data.summary["achieved_mixture_ratio"] > 0.95
    assert any("replay_dataset" in warning for warning in data.warnings)


def test_dataset_cannot_be_its_own_replay(workspace: Workspace, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="replay_dataset"):
        prepare(workspace, tokenizer, replay_dataset="mill")


def test_dataset_may_be_named_with_its_folder(workspace: Workspace, tokenizer: Tokenizer) -> None:
    plain, prefixed = (prepare(workspace, tokenizer, dataset=n) for n in ("mill", "dataset/mill/"))
    assert plain.summary == prefixed.summary


@pytest.mark.parametrize(
    "name", ["nothing", "../models", ".", "dataset/", "mill/00.md", "/etc", "~"]
)
def test_unknown_dataset_names_what_exists(
    workspace: Workspace, tokenizer: Tokenizer, name: str
) -> None:
    workspace.models.mkdir()
    with pytest.raises(DatasetNotFound) as caught:
        prepare(workspace, tokenizer, dataset=name)
    assert "mill" in caught.value.suggestion
    assert str(workspace.root) not in json.dumps(caught.value.to_dict())


def test_datasets_are_listed(workspace: Workspace) -> None:
    assert list_datasets(workspace) == ["general", "mill"]


def test_dataset_without_text_says_what_was_skipped(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    (workspace.datasets / "scans").mkdir()
    (workspace.datasets / "scans" / "page.png").write_bytes(b"x")
    with pytest.raises(DataError, match="No text") as caught:
        prepare(workspace, tokenizer, dataset="scans")
    assert caught.value.details["skipped"] == ["page.png: unsupported type"]


def test_tiny_dataset_repeats_with_a_warning(workspace: Workspace, tokenizer: Tokenizer) -> None:
    (workspace.datasets / "note").mkdir()
    (workspace.datasets / "note" / "a.txt").write_text("The wheel turns.")
    data = prepare(workspace, tokenizer, dataset="note", data_mixture_ratio=1.0)
    assert any("max_seq_length" in warning for warning in data.warnings)
    assert data.batch(0).segment_ids.max() > 1
    assert sum(batch.num_targets for batch in data.validation_batches()) > 0


def test_two_tokens_are_refused(workspace: Workspace, tokenizer: Tokenizer) -> None:
    (workspace.datasets / "note").mkdir()
    (workspace.datasets / "note" / "a.txt").write_text("a")
    with pytest.raises(DataError, match="2 tokens"):
        prepare(workspace, tokenizer, dataset="note")


def test_summary_is_json_and_counts(workspace: Workspace, tokenizer: Tokenizer) -> None:
    (workspace.datasets / "mill" / "photo.png").write_bytes(b"x")
    data = prepare(workspace, tokenizer)
    summary = json.loads(json.dumps(data.summary))
    assert summary == data.summary
    assert summary["documents"] == 40
    assert summary["train_documents"] + summary["validation_documents"] == 40
    assert summary["skipped"] == [
        {"source": "photo.png", "reason": "unsupported type", "rows": None}
    ]
    assert "photo.png" in data.warnings[0]
    assert str(workspace.root) not in json.dumps(summary)


def test_resume_reads_the_cache_when_the_dataset_is_gone(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    data = prepare(workspace, tokenizer)
    shutil.rmtree(workspace.datasets)
    again = reopen_prepared(data.summary, recipe(), workspace, tokenizer, SEQ_LEN)
    assert all(same(again.batch(index), data.batch(index)) for index in range(50))
    assert again.summary["fingerprint"] == data.summary["fingerprint"]


def test_resume_ignores_later_changes_of_the_dataset(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    data = prepare(workspace, tokenizer)
    (workspace.datasets / "mill" / "00.md").write_text("edited")
    again = reopen_prepared(data.summary, recipe(), workspace, tokenizer, SEQ_LEN)
    assert all(same(again.batch(index), data.batch(index)) for index in range(50))


def test_resume_prepares_again_without_the_cache(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    data = prepare(workspace, tokenizer)
    expected = [data.batch(index) for index in range(50)]
    shutil.rmtree(workspace.cache)
    again = reopen_prepared(data.summary, recipe(), workspace, tokenizer, SEQ_LEN)
    assert all(same(again.batch(index), expected[index]) for index in range(50))
    assert again.summary == data.summary


def test_resume_refuses_a_changed_dataset_without_the_cache(
    workspace: Workspace, tokenizer: Tokenizer
) -> None:
    data = prepare(workspace, tokenizer)
    shutil.rmtree(workspace.cache)
    (workspace.datasets / "mill" / "00.md").write_text("edited")
    with pytest.raises(DataError, match="changed since the run started"):
        reopen_prepared(data.summary, recipe(), workspace, tokenizer, SEQ_LEN)
    shutil.rmtree(workspace.datasets / "mill")
    with pytest.raises(DatasetNotFound):
        reopen_prepared(data.summary, recipe(), workspace, tokenizer, SEQ_LEN)


def test_resume_refuses_another_tokenizer(
    workspace: Workspace, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    data = prepare(workspace, tokenizer)
    folder = build_tiny_tokenizer(tmp_path / "other")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|start|>"))
    with pytest.raises(DataError, match="tokenizer changed"):
        reopen_prepared(data.summary, recipe(), workspace, Tokenizer.load(folder), SEQ_LEN)
