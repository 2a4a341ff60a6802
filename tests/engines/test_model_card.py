"""What a model card says was measured, and under which licence it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forgellm import supervisor
from forgellm.catalog.licence import licence_of
from forgellm.paths import Workspace
from forgellm.publishing.build import build_published
from forgellm.runs.checkpoints import find_checkpoint, list_checkpoints, rank
from forgellm.runs.evaluations import read_evaluations
from forgellm.runs.store import Run
from forgellm.training.session import Session
from tiny_workspace import build_tiny_workspace, tiny_recipe


def test_a_card_has_the_figures_before_and_after_and_the_ranks(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    probe = {"question": "Who?", "stem": "in the evening the", "answer": "miller",
             "distractors": ["keeper", "river"]}  # fmt: skip
    (workspace.datasets / "q.json").write_text(json.dumps({"probes": [probe]}))
    (workspace.base_models / "tiny" / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    fields = {"probe_files": ["dataset/q.json"], "max_iterations": 4, "save_every": 2}
    run, lock = supervisor.claim_new_run(workspace, tiny_recipe(**fields), max_seq_length=64)
    with lock:
        Session().train(run)
    worst = rank(list_checkpoints(run.folder))[-1].iteration
    card = card_of(workspace, run, worst)
    lines = {line.iteration: line for line in read_evaluations(run.folder)}
    before, measured = lines[0], lines[worst]
    assert "license: mit" in card.split("---")[1]
    assert "1 probes of `dataset/q.json`, right" in card
    assert f"| {before.general[0].loss:.3f} | {measured.general[0].loss:.3f} |" in card
    assert "This one is number 2 of 2" in card
    assert "## Make it again" in card
    best = rank(list_checkpoints(run.folder))[0].iteration
    assert "least validation loss" in card_of(workspace, run, best)


def card_of(workspace: Workspace, run: Run, iteration: int) -> str:
    checkpoint = find_checkpoint(run.folder, iteration)
    published = build_published(run, checkpoint, lambda done, text: None)
    return (workspace.root / published.readme_path).read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# X", "apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: 'a b<script>'\n---\n", None),
        ("---\n" + "[" * 5000 + "\n---\n", None),
        ("license: mit", None),
        ("", None),
    ],
)
def test_a_licence_is_an_identifier_in_the_head(
    tmp_path: Path, text: str, licence: str | None
) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    assert licence_of(tmp_path) == licence
