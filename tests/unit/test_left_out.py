"""What was left out of a dataset, told in the terminal and in errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forgellm.cli.main import main
from forgellm.data.documents import Skipped
from forgellm.data.left_out import in_words, reasons_of, worst_first
from forgellm.paths import Workspace
from forgellm.runs.store import latest_run
from tiny_workspace import build_tiny_workspace, write_documents

FLAGS = "--model tiny --dtype float32 --max-iterations 1 --batch-size 1 --max-seq-length 64".split()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return build_tiny_workspace(tmp_path_factory.mktemp("w"))


def write_rows(workspace: Workspace, name: str, rows: list[Any]) -> None:
    folder = workspace.datasets / name
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(workspace: Workspace, *flags: str) -> int:
    return main(["train", "--workspace", str(workspace.root), *FLAGS, *flags])


def talk(question: str, asker: str = "user") -> dict[str, Any]:
    said = [(asker, question), ("assistant", "yes")]
    return {"messages": [{"role": role, "content": text} for role, text in said]}


def test_whole_files_come_first_then_the_most_rows_and_other_kinds_last() -> None:
    items = [
        Skipped("a.png", "unsupported type"),
        Skipped("b.jsonl", "an empty answer, first at 3", 2),
        Skipped("c.jsonl", "broken JSON, first at 1", 40),
        Skipped("d.pdf", "no text layer"),
    ]
    assert [item.source[0] for item in worst_first(items)] == ["d", "c", "b", "a"]


def test_the_same_reason_is_told_once_with_all_its_rows() -> None:
    items = [Skipped(f"{n}.jsonl", f"an empty answer, first at {n}", n) for n in range(1, 60)]
    (reason,) = reasons_of(items)
    assert (reason.reason, reason.rows, len(reason.sources)) == ("an empty answer", 1770, 59)
    assert in_words(items) == "1,770 rows: an empty answer (59.jsonl, 58.jsonl and 57 more)"


PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


@pytest.mark.parametrize(
    ("name", "training_type", "rows", "told", "advice"),
    [
        ("long", "ift", [talk("stone " * 90)] * 5, "5 rows: its first answer ends beyond 65 tokens", "max_seq_length"),
        ("role", "ift", [talk("Why?", asker="moderator")] * 3, "'moderator'", "Name the speakers"),
        ("pairs", "ift", [PAIR], "training_type dpo", "training_type dpo or orpo"),
        ("talks", "cpt", [talk("Why?")], "1 conversation, learned with", "training_type ift"),
        ("single", "dpo", [talk("Why?")] * 2, "2 conversations, learned with", "training_type ift"),
        ("plain", "ift", [{"text": "The tide."}], "training_type cpt", "training_type cpt"),
        ("void", "ift", [], "rows.jsonl: empty", "JSON lines"),
    ],
)  # fmt: skip
def test_a_dataset_that_yields_nothing_says_why(
    workspace: Workspace,
    capsys: pytest.CaptureFixture[str],
    name: str,
    training_type: str,
    rows: list[Any],
    told: str,
    advice: str,
) -> None:
    write_rows(workspace, name, rows)
    assert train(workspace, "--dataset", name, "--training-type", training_type) == 2
    first, *rest = capsys.readouterr().err.split("forgellm: DATASET_UNUSABLE: ")[1].splitlines()
    assert told in first
    assert advice in rest[-1]


def test_the_terminal_shows_the_warnings_of_the_run_before_it_trains(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_documents(workspace, "mixed", 6)
    (folder / "\x1b[31mred.pdf").write_bytes(b"%PDF-1.4 broken")
    (folder / "lines.jsonl").write_text('{"text": "The tide."}\n{"text": \n')
    assert train(workspace, "--dataset", "mixed") == 0
    told = capsys.readouterr().err
    before, after = told.split("\n  training\n")
    run = latest_run(workspace)
    assert run is not None
    warnings = run.record().warnings
    assert warnings and all(f"Warning: {text[:20]}" in before for text in warnings)
    assert "red.pdf" in before and "broken JSON" in before and "\x1b" not in told
    assert f"forgellm runs show {run.name}" in after
    assert main(["runs", "show", run.name, "--workspace", str(workspace.root)]) == 0
    assert "broken JSON" in capsys.readouterr().out


def test_an_error_in_the_terminal_lists_its_details(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workspace.datasets / "pictures"
    folder.mkdir()
    for number in range(14):
        (folder / f"{number:02d}.jsonl").write_text("[")
    assert train(workspace, "--dataset", "pictures", "--training-type", "ift") == 2
    lines = capsys.readouterr().err.splitlines()
    assert "  Left out:" in lines
    assert "    00.jsonl: broken JSON at line 1: it ends too early" in lines
    assert "    and 4 more" in lines


def test_notes_are_kept_and_shown_with_the_run(workspace: Workspace, tmp_path: Path) -> None:
    rows = [talk(f"Why {n}?") | {"score_of_the_day": n} for n in range(1, 9)]
    write_rows(workspace, "noted", rows)
    assert train(workspace, "--dataset", "noted", "--training-type", "ift") == 0
    run = latest_run(workspace)
    assert run is not None
    assert any("score_of_the_day" in text for text in run.record().warnings)
