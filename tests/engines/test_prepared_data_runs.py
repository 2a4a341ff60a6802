"""The same prepared data gives the same run: its fingerprint is recorded, and the losses agree."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from forgellm import supervisor
from forgellm.data.cleaning.preparation import prepare
from forgellm.paths import Workspace
from forgellm.runs.metrics import effective, read_lines
from forgellm.schema.preparation import PrepareRequest
from forgellm.training.session import Session
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_conversations


def train(workspace: Workspace, **fields: Any) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """What the run records of its data, and its losses."""
    recipe = tiny_recipe(data_mixture_ratio=1.0, max_iterations=4, **fields)
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=64)
    with lock:
        Session().train(run)
    lines = effective(read_lines(run.folder)[0])
    data = run.record().data
    assert data is not None
    return data, [(line.iteration, line.training_loss, line.validation_loss) for line in lines]


@pytest.mark.parametrize("engine", ["torch", "mlx"])
@pytest.mark.parametrize("training_type", ["cpt", "ift"])
def test_the_same_prepared_data_trains_to_the_same_losses_elsewhere(
    tmp_path: Path, engine: str, training_type: str
) -> None:
    here = build_tiny_workspace(tmp_path / "here")
    if training_type == "ift":
        shutil.rmtree(here.datasets / "notes")
        write_conversations(here, "notes")
    there = Workspace(shutil.copytree(here.root, tmp_path / "there"))
    found = []
    for workspace in (here, there):
        made = prepare(workspace.datasets / "notes", PrepareRequest(), {}, lambda done, task: None)
        fields = {"dataset": "notes-prepared", "training_type": training_type, "engine": engine}
        data, losses = train(workspace, **fields)
        assert data["fingerprint"] == made.fingerprint
        assert not data["preparation"]["changed_since"]
        found.append((made.fingerprint, made.original_fingerprint, losses))
    assert found[0] == found[1]
    assert len(found[0][2]) >= 4
