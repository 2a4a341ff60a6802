"""A run that is trained again comes out the same, or it is said where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgellm.cli.main import main
from forgellm.paths import Workspace
from forgellm.runs.store import latest_run, list_runs
from tiny_workspace import build_tiny_workspace

FLAGS = (
    "--model tiny --dataset notes --dtype float32 --max-iterations 4 --batch-size 2"
    " --max-seq-length 64 --lora-rank 4 --lora-dropout 0.1 --report-every 1 --eval-every 2"
).split()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_tiny_workspace(tmp_path / "w")


def forgellm(workspace: Workspace, command: str, *arguments: str) -> int:
    return main([command, "--workspace", str(workspace.root), *arguments])


@pytest.mark.parametrize("engine", ["torch", "mlx"])
def test_a_run_again_has_the_same_losses_until_its_data_change(
    workspace: Workspace, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forgellm(workspace, "train", *FLAGS, "--engine", engine) == 0
    first = latest_run(workspace)
    assert first is not None
    assert forgellm(workspace, "reproduce", first.name) == 0
    assert "losses that both runs reported are equal, bit for bit" in capsys.readouterr().out
    second = next(run for run in list_runs(workspace) if run.name != first.name)
    assert second.record().engine == engine
    for file in (workspace.datasets / "notes").iterdir():
        file.write_text(f"Once more. {file.read_text()}")
    assert forgellm(workspace, "reproduce", first.name) == 0
    said = capsys.readouterr().out
    assert "Not as before: data: fingerprint was" in said
    assert "The losses differ from iteration" in said


def test_what_is_no_run_cannot_be_reproduced(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forgellm(workspace, "reproduce", "absent") == 1
    assert "RUN_NOT_FOUND" in capsys.readouterr().err
