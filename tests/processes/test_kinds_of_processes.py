"""Whatever one process trains and measures, two do as well: answers, preferences, probes and samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forgellm.paths import Workspace
from forgellm.runs.evaluations import read_evaluations, read_samples
from preference_pairs import write_preferences
from several_processes import assert_same_curve, start, train_alone, wait
from tiny_workspace import build_tiny_workspace, write_conversations

KINDS: dict[str, dict[str, Any]] = {
    "answers": {"training_type": "ift", "dataset": "chat", "chat_template": "turns"},
    "dpo": {"training_type": "dpo", "dataset": "pairs", "chat_template": "turns"},
}
MEASURED = {
    "probe_files": ["dataset/questions.json"],
    "general_files": ["dataset/notes"],
    "sample_prompts": ["What is counted?"],
    "allow_overlap": True,
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = build_tiny_workspace(tmp_path / "w")
    write_conversations(workspace, "chat")
    write_preferences(workspace, "pairs")
    probe = {"question": "Who counts?", "stem": "the", "answer": "keeper", "distractors": ["mill"]}
    (workspace.datasets / "questions.json").write_text(json.dumps({"probes": [probe]}))
    return workspace


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "parallelism"),
    [("answers", "ddp"), ("dpo", "fsdp")],
)
def test_two_processes_learn_and_measure_as_one(
    workspace: Workspace, kind: str, parallelism: str
) -> None:
    fields = {**KINDS[kind], **MEASURED, "learning_rate": 1e-3}
    expected = train_alone(workspace, **fields)
    run = start(workspace, **fields, nproc_per_node=2, parallelism=parallelism)
    assert wait(run).phase == "completed", run.log_file.read_text()
    assert_same_curve(run, expected)
    found, wanted = (read_evaluations(r.folder) for r in (run, expected))
    assert [line.iteration for line in found] == [line.iteration for line in wanted]
    for one, other in zip(wanted, found, strict=True):
        assert other.general[0].loss == pytest.approx(one.general[0].loss, rel=1e-4)
        assert other.probes[0].confidence == pytest.approx(one.probes[0].confidence, rel=1e-4)
    texts = [[sample.answer for sample in read_samples(r.folder)] for r in (run, expected)]
    assert texts[0] == texts[1]
