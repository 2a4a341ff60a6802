"""Kill -9 at several moments of what makes models: nothing to see, and the next attempt succeeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forgellm import supervisor
from forgellm.catalog import list_models
from forgellm.publishing.exports import list_exports
from forgellm.runs.store import Run
from forgellm.training.session import Session
from killing import killed_at
from tiny_workspace import build_tiny_workspace, tiny_recipe

NEVER = 2.0
# Of each task: as it begins, with its files half written, and when only the rename is left.
MOMENTS = {
    "publish": (0.0, 0.3, 0.9),
    "combine": (0.0, 0.3, 0.95),
    "export": (0.0, 0.3, 0.9),
    "quantise": (0.0, 0.1, 0.8),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("killed"))
    found, lock = supervisor.claim_new_run(workspace, tiny_recipe(), max_seq_length=64)
    with lock:
        Session().train(found)
    return found


def request_of(task: str, run: Run) -> dict[str, Any]:
    return {
        "publish": {
            "run_folder": str(run.folder),
            "iteration": 4,
            "dtype": None,
            "allow_changed_base": False,
        },
        "combine": {"checkpoints": [f"{run.name}@4", f"{run.name}@12"], "name": "both"},
        "export": {"model_name": f"{run.name}@4", "format": "peft"},
        "quantise": {"model_name": "tiny", "bits": 8, "group_size": 32},
    }[task]


def seen(run: Run) -> tuple[set[str], set[str]]:
    """What users see of models and of exports."""
    made = {model.name for model in list_models(run.workspace) if model.kind == "published"}
    return made, {item.name for item in list_exports(run.workspace)}


def leftovers(run: Run) -> list[Path]:
    workspace = run.workspace
    places = (workspace.published_models, workspace.exported_models)
    return [path for place in places for path in place.glob(".unfinished-*")]


@pytest.mark.parametrize("task", MOMENTS)
def test_a_kill_leaves_nothing_to_see_and_the_next_attempt_succeeds(task: str, run: Run) -> None:
    request, before = request_of(task, run), seen(run)
    for moment in MOMENTS[task]:
        assert killed_at(moment, task, request, run.workspace)
        assert seen(run) == before
        assert bool(leftovers(run)) is (moment > 0)
    assert not killed_at(NEVER, task, request, run.workspace)
    assert leftovers(run) == []
    assert sum(map(len, seen(run))) == sum(map(len, before)) + 1
