"""A workspace that an earlier version made is opened by this one.

`tests/fixtures/workspace_0.1.0.zip` was made by the commands of version 0.1.0 (commit ef768d2): a
tiny model, a dataset of documents and one of conversations, a CPT run of 8 iterations with
checkpoints at 4 and 8, an IFT run of 4 iterations, a published model and a recipe file. Locks,
caches and pictures are left out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest
from safetensors.numpy import load_file

from forgellm.cli.main import main
from forgellm.paths import Workspace
from forgellm.runs.store import Run, find_run

FIXTURE = Path(__file__).parents[1] / "fixtures" / "workspace_0.1.0.zip"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    with ZipFile(FIXTURE) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path.resolve())


def the_run(workspace: Workspace, training_type: str) -> Run:
    [folder] = [f for f in (workspace.root / "models" / training_type).iterdir() if f.is_dir()]
    return find_run(workspace, folder.name)


def test_its_runs_and_models_are_listed(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "list"]) == 0
    assert main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert "tiny_lr1e_04_bs2_iter8" in shown and "tiny_lr1e_04_bs2_iter4" in shown
    assert "published/tiny_lr1e_04_bs2_iter8" in shown


def test_its_run_is_continued_to_the_weights_it_had(workspace: Workspace) -> None:
    """The later checkpoint is taken away and made again. Another processor may round otherwise."""
    run = the_run(workspace, "cpt")
    last = run.folder / "0000008_adapters.safetensors"
    before = load_file(last)
    shutil.rmtree(run.folder / "checkpoints" / "0000008")
    last.unlink()
    state = json.loads((run.folder / "state.json").read_text())
    state |= {"phase": "interrupted", "iteration": 4}
    (run.folder / "state.json").write_text(json.dumps(state))
    lines = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["iteration"] <= 4]
    (run.folder / "metrics.jsonl").write_text("".join(kept))
    assert main(["train", "--resume", run.name]) == 0
    after = load_file(last)
    assert after.keys() == before.keys()
    for name, values in before.items():
        assert abs(after[name] - values).max() < 1e-5, name


def test_its_adapters_and_published_model_answer(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["cli", "generate", "--prompt", "The mill", "--max-tokens", "4"]
    for kind in ("cpt", "ift"):
        adapter = str(the_run(workspace, kind).folder.relative_to(workspace.root))
        assert main([*asked, "--model", "tiny", "--adapter-path", adapter]) == 0
    [published] = [f.name for f in (workspace.root / "models/published").iterdir() if f.is_dir()]
    assert main([*asked, "--model", f"published/{published}"]) == 0


def test_its_run_is_published(workspace: Workspace) -> None:
    run = the_run(workspace, "ift")
    assert main(["publish", "--run", run.name]) == 0
    assert len([*(workspace.root / "models/published").glob("*/model.safetensors")]) == 2


def test_its_recipe_file_trains(workspace: Workspace) -> None:
    assert main(["train", "--config", "recipe.yaml"]) == 0
