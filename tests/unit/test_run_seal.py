"""`run.json` tells which of its fields were edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgellm import supervisor
from forgellm.cli.main import main
from forgellm.errors import RunEdited
from forgellm.generation.loading import find_source
from forgellm.paths import Workspace
from forgellm.runs.lineage import start_checkpoint
from forgellm.runs.manage import rename_run
from forgellm.runs.reproduction import recipe_again
from forgellm.runs.store import Run, create_run
from forgellm.schema.generation import LoadRequest
from forgellm.schema.recipe import parse_recipe
from forgellm.training.session import Session

RECIPE = {"model_name": "tiny", "dataset": "notes", "learning_rate": 1e-3}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    workspace = Workspace(tmp_path.resolve())
    run = create_run(workspace, parse_recipe(RECIPE), 64)
    (run.folder / "0000300_adapters.safetensors").touch()
    return run


def edit(run: Run, change: Callable[[dict[str, Any]], object]) -> None:
    file = run.folder / "run.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda c: c["recipe"].update(learning_rate=2e-3), "recipe.learning_rate"),
        (lambda c: c["recipe"].update(model_name="other"), "recipe.model_name"),
        (lambda c: c["recipe"].pop("seed"), "recipe.seed"),
        (lambda c: c.update(training_id="cpt_1"), "training_id"),
        (lambda c: c.update(base_files={"a": {"size_bytes": 1, "sha256": "0"}}), "base_files"),
        (lambda c: c.update(lineage=[1]), "lineage"),
        (lambda c: c.update(more=1), "more"),
        (lambda c: c.pop("seal"), "seal"),
        (lambda c: c["seal"].update(name="0" * 16), "name"),
    ],
)
def test_an_edit_is_told_by_its_field(run: Run, change: Any, field: str) -> None:
    run.require_as_written()
    edit(run, change)
    with pytest.raises(RunEdited, match=field.replace(".", r"\.")) as caught:
        run.require_as_written()
    assert caught.value.details["fields"] == [field]


def test_the_same_content_in_another_form_is_no_edit(run: Run) -> None:
    content = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps(dict(reversed(content.items())), indent=7))
    run.require_as_written()


def test_a_record_of_an_earlier_version_has_no_seal(run: Run) -> None:
    edit(run, lambda content: (content.pop("seal"), content.pop("base_files")))
    run.require_as_written()


def test_whatever_uses_a_run_looks_at_its_record_first(run: Run) -> None:
    edit(run, lambda content: content["recipe"].update(learning_rate=1.0))
    workspace, weights = run.workspace, f"{run.output_dir}/0000300_adapters.safetensors"
    (run.folder / "checkpoints" / "0000300").mkdir(parents=True)
    load = LoadRequest(model_name="tiny", adapter_path=weights)
    uses: list[Callable[[], object]] = [
        lambda: find_source(load, workspace),
        lambda: start_checkpoint(run.name, workspace),
        lambda: recipe_again(run),
        lambda: rename_run(run, "another"),
        lambda: supervisor.resume_training(workspace, run),
        lambda: supervisor.claim_resume(workspace, run),
        lambda: supervisor.claim_again(workspace, run),
        lambda: supervisor.queue_again(workspace, run),
        lambda: Session().train(run),
    ]
    for use in uses:
        with pytest.raises(RunEdited):
            use()


def test_an_edit_can_be_accepted(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, lambda content: content["recipe"].update(learning_rate=0.5))
    assert main(["runs", "--workspace", str(run.workspace.root), "accept", run.name]) == 0
    assert "recipe.learning_rate" in capsys.readouterr().out
    run.require_as_written()
    assert run.record().recipe.learning_rate == 0.5
    assert "recipe.learning_rate" in run.record().warnings[-1]


def test_renaming_seals_anew(run: Run) -> None:
    run.write_state(run.written_state().model_copy(update={"phase": "completed"}))
    rename_run(run, "another").require_as_written()
