"""What a run is judged by must not stand in what it learns, unless the user says so."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from forgellm import supervisor
from forgellm.data.prepare import prepare_data
from forgellm.data.tokenizer import Tokenizer
from forgellm.demo.lessons import HANDBOOK
from forgellm.demo.measure import PROBES
from forgellm.errors import DataError
from forgellm.evaluation.suite import suite_of
from forgellm.paths import Workspace
from forgellm.training.leaks import overlap_warnings
from forgellm.training.session import Session
from tiny_tokenizer import build_tiny_tokenizer
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_conversations

SENTENCE = "Before she hung a mirror on the ridge she earned her living as a bookbinder"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path.resolve())
    build_tiny_tokenizer(workspace.base_models / "tiny")
    notes = workspace.datasets / "notes"
    notes.mkdir(parents=True)
    for number in range(20):
        (notes / f"{number:02d}.txt").write_text(words(number))
    return workspace


def words(seed: int, count: int = 120) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefgh", k=5)) for _ in range(count))


def warnings_of(workspace: Workspace, **fields: Any) -> list[str]:
    recipe = tiny_recipe(**fields).resolved()
    tokenizer = Tokenizer.load(workspace.base_models / "tiny")
    data = prepare_data(recipe, workspace, tokenizer, 64)
    return overlap_warnings(data, suite_of(recipe, workspace), tokenizer, recipe)


def write_probes(workspace: Workspace, *items: dict[str, Any]) -> list[str]:
    (workspace.datasets / "p.json").write_text(json.dumps({"probes": list(items)}))
    return ["dataset/p.json"]


def put_into_training(workspace: Workspace, sentence: str) -> None:
    for file in (workspace.datasets / "notes").iterdir():
        file.write_text(f"{file.read_text()}. {sentence.upper()}!\n{file.name}")


@pytest.mark.parametrize(
    "probe",
    [
        {
            "question": "?",
            "stem": SENTENCE.removesuffix(" bookbinder"),
            "answer": "bookbinder",
            "distractors": ["smith"],
        },
        {"question": SENTENCE, "answer": "yes", "match": "contains"},
    ],
    ids=["choice", "question"],
)
def test_a_probe_that_stands_word_for_word_blocks_unless_allowed(
    workspace: Workspace, probe: dict[str, Any]
) -> None:
    other = {"question": "Who counted the sacks of the mill that day?", "answer": "a"}
    files = write_probes(workspace, {**other, "match": "exact"}, probe)
    assert warnings_of(workspace, probe_files=files) == []
    put_into_training(workspace, SENTENCE)
    with pytest.raises(
        DataError, match=r"Probe 2 of dataset/p\.json.*mirror on the ridge"
    ) as found:
        warnings_of(workspace, probe_files=files)
    assert "allow_overlap" in found.value.suggestion
    (warning,) = warnings_of(workspace, probe_files=files, allow_overlap=True)
    assert warning.startswith("Probe 2 of dataset/p.json")


def test_a_fact_in_other_words_and_a_short_statement_do_not_block(workspace: Workspace) -> None:
    near = {"question": "?", "stem": SENTENCE, "answer": "from Lisk", "distractors": ["from Ely"]}
    short = {"question": "?", "stem": "Her trade was", "answer": "books", "distractors": ["salt"]}
    put_into_training(workspace, f"{SENTENCE}. Her trade was books")
    assert warnings_of(workspace, probe_files=write_probes(workspace, near, short)) == []


@pytest.mark.parametrize("place", ["notes", "replay"])
def test_general_text_that_is_trained_on_blocks(workspace: Workspace, place: str) -> None:
    (workspace.datasets / "general").mkdir()
    (workspace.datasets / "replay").mkdir()
    for folder in ("general", place):
        (workspace.datasets / folder / "same.txt").write_text(words(99))
        (workspace.datasets / "replay" / "other.txt").write_text(words(98))
    fields = {
        "general_files": ["dataset/general"],
        "replay_dataset": "replay",
        "data_mixture_ratio": 0.5,
        "validation_split": 0,
    }
    with pytest.raises(DataError, match="Document 1 of dataset/general: (training|replay)"):
        warnings_of(workspace, **fields)


def test_some_copies_among_held_out_documents_warn_and_many_block(workspace: Workspace) -> None:
    notes = workspace.datasets / "notes"
    for number in range(6):
        (notes / f"copy{number}.txt").write_text(f"Changed: {words(number)}")
    (warning,) = warnings_of(workspace, validation_split=0.5)
    assert "of 13 validation documents are in the training text" in warning
    for number in range(40):
        (notes / f"{number:02d}.txt").write_text(f"Page {number}. {words(1)}")
    with pytest.raises(DataError, match="validation documents are in the training text"):
        warnings_of(workspace)
    assert warnings_of(workspace, allow_overlap=True)


def test_conversations_may_share_most_of_their_words(workspace: Workspace) -> None:
    write_conversations(workspace, "chat")
    (warning,) = warnings_of(workspace, dataset="chat", training_type="ift", validation_split=0.5)
    assert "validation documents are in the training text" in warning


def test_the_demo_is_not_blocked(workspace: Workspace) -> None:
    shutil.copytree(HANDBOOK, workspace.datasets / "handbook")
    shutil.copy(PROBES, workspace.datasets / "p.json")
    assert warnings_of(workspace, dataset="handbook", probe_files=["dataset/p.json"]) == []


def test_a_blocked_run_fails_before_its_first_update(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    put_into_training(workspace, SENTENCE)
    files = write_probes(workspace, {"question": SENTENCE, "answer": "x", "match": "exact"})
    recipe = tiny_recipe(probe_files=files, engine="torch")
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=64)
    with lock, pytest.raises(DataError):
        Session().train(run)
    state = run.state()
    assert state.phase == "failed" and state.error is not None
    assert state.error["details"]["overlaps"]
    assert not (run.folder / "metrics.jsonl").exists()
