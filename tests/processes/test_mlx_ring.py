"""Two processes under `mlx.launch` train as one does: the same run, the same weights."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.metrics import effective, read_lines
from forgellm.runs.store import Run, latest_run
from tiny_workspace import build_tiny_workspace

BIN = Path(sys.executable).parent
FLAGS = ["--model", "tiny", "--dataset", "notes", "--max-iterations", "6", "--save-every", "3"]
FLAGS += ["--batch-size", "4", "--max-seq-length", "64", "--lora-rank", "4", "--dtype", "float32"]
FLAGS += ["--learning-rate", "0.01"]

pytestmark = pytest.mark.skipif(
    not (BIN / "mlx.launch").exists() or shutil.which("bash") is None, reason="needs mlx.launch"
)


def train(
    workspace: Workspace, *flags: str, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "forgellm"), "train", "--workspace", str(workspace.root), *flags]
    if processes > 1:
        port = str(_free_port())
        launch = [str(BIN / "mlx.launch"), "--backend", "ring", "-n", str(processes)]
        command = [*launch, "--starting-port", port, "--", *command]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLX_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=clean)


def _free_port() -> int:
    """The launcher takes this port and the next."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(int(probe.getsockname()[1]), 65_000)


def only_run(workspace: Workspace) -> Run:
    run = latest_run(workspace)
    assert run is not None
    assert [path.name for path in workspace.runs("cpt").iterdir() if path.is_dir()] == [run.name]
    return run


def weights(run: Run, iteration: int) -> dict[str, np.ndarray]:
    file = checkpoints.find_checkpoint(run.folder, iteration).weights
    file = file / "model.safetensors" if file.is_dir() else file
    return safetensors.numpy.load_file(file)


@pytest.mark.parametrize(
    "kind",
    [
        ["--lora-rank", "4"],
        pytest.param(
            ["--fine-tune-type", "full", "--grad-accum-steps", "2"], marks=pytest.mark.slow
        ),
    ],
)
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, kind: list[str]) -> None:
    """Each computes half the rows of every batch, of which one process computes all."""
    runs = []
    for processes in (1, 2):
        workspace = build_tiny_workspace(tmp_path / str(processes))
        result = train(workspace, *FLAGS, *kind, "--engine", "mlx", processes=processes)
        assert result.returncode == 0, result.stderr
        runs.append(only_run(workspace))
    ends = [weights(run, 6) for run in runs]
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[0].items():
        # Of the whole matrix: Adam makes much of the rounding of a gradient that is almost zero.
        assert np.linalg.norm(ends[1][key] - value) < 1e-4 * np.linalg.norm(value), key
    curves = [effective(read_lines(run.folder)[0]) for run in runs]
    for one, two in zip(*curves, strict=True):
        assert (one.iteration, one.trained_tokens) == (two.iteration, two.trained_tokens)
        for field in ("training_loss", "validation_loss", "grad_norm"):
            expected = getattr(one, field)
            assert getattr(two, field) == (expected and pytest.approx(expected, rel=1e-4))


@pytest.mark.slow
def test_a_run_of_one_process_is_resumed_by_two(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    assert train(workspace, *FLAGS, "--engine", "mlx").returncode == 0
    run = only_run(workspace)
    expected = weights(run, 6)
    checkpoints._remove(run.folder, "0000006")
    result = train(workspace, "--resume", run.name, processes=2)
    assert result.returncode == 0, result.stderr
    for key, value in weights(run, 6).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "mlx", "--batch-size", "3"], "batch_size: must be a multiple of the 2"),
        (["--engine", "torch"], "engine: processes of mlx.launch train together with mlx only"),
    ],
)
def test_what_two_processes_cannot_do_is_said(tmp_path: Path, flags: list[str], words: str) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    result = train(workspace, *FLAGS, *flags, processes=2)
    assert words in result.stdout + result.stderr
    assert not list(workspace.runs("cpt").glob("*/*_adapters.safetensors"))
