"""What was made from what, also after renaming and deleting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from forgellm import supervisor
from forgellm.catalog.remove import remove_model
from forgellm.cli.main import main
from forgellm.paths import Workspace
from forgellm.publishing.artefact import write_lineage
from forgellm.publishing.build import build_published
from forgellm.publishing.family import family
from forgellm.runs.checkpoints import find_checkpoint
from forgellm.runs.manage import rename_run
from forgellm.runs.store import Run
from forgellm.training.session import Session
from tiny_workspace import build_tiny_workspace, tiny_recipe


def train(workspace: Workspace, **fields: Any) -> Run:
    recipe = tiny_recipe(max_iterations=2, save_every=2, **fields)
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=64)
    with lock:
        Session().train(run)
    return run


def parents(workspace: Workspace) -> dict[str, list[str]]:
    return {member.name: member.made_from for member in family(workspace)}


def test_everything_is_below_what_it_was_made_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    first = train(workspace)
    second = train(workspace, base_run=f"{first.name}@2", base_run_mode="stacked")
    published = build_published(second, find_checkpoint(second.folder, 2), lambda done, text: None)
    export = workspace.exported_models / "file"
    export.mkdir(parents=True)
    write_lineage(export, "gguf", [published.model_name], ["forgellm", "models", "export"])

    second = rename_run(second, "renamed")
    found = parents(workspace)
    assert found == {
        "base/tiny": [],
        f"cpt/{first.name}": ["base/tiny"],
        f"cpt/{first.name}@2": [f"cpt/{first.name}"],
        "cpt/renamed": [f"cpt/{first.name}@2"],
        "cpt/renamed@2": ["cpt/renamed"],
        published.model_name: ["cpt/renamed@2"],
        "exported/file": [published.model_name],
    }
    by_name = {member.name: member for member in family(workspace)}
    command = by_name[published.model_name].command
    assert command == f"forgellm publish --run {second.record().training_id} --iteration 2"
    assert main(["models", "--workspace", str(workspace.root), "tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("base/tiny") and "exported/file  gguf" in lines[-2]

    remove_model(published.model_name, workspace, [])
    gone = {member.name for member in family(workspace) if member.kind == "missing"}
    assert gone == {published.model_name}


@pytest.mark.parametrize(
    "note", ["", "[]", "{}", '{"kind": 1, "made_from": 2}', '{"kind": "x", "made_from": [1]}']
)
def test_a_note_that_cannot_be_read_hides_nothing(tmp_path: Path, note: str) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    folder = workspace.published_models / "tiny"
    shutil.copytree(workspace.base_models / "tiny", folder)
    (folder / "lineage.json").write_text(note)
    assert {m.name: m.kind for m in family(workspace)}["published/tiny"] == "published"


def test_models_of_other_places_are_named_without_them(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    run = train(workspace)
    record = json.loads((run.folder / "run.json").read_text())
    record["model"]["name"] = record["recipe"]["model_name"] = "/secret/place/mine"
    (run.folder / "run.json").write_text(json.dumps(record))
    assert parents(workspace)[f"cpt/{run.name}"] == ["mine"]
