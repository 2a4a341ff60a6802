"""A machine with one engine's library does everything with it, and never asks for the other's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

import forgellm as package
from forgellm.paths import Workspace
from forgellm.runs.store import latest_run
from tiny_workspace import build_tiny_workspace

ABSENT = {
    "torch": ("torch", "torchgen", "functorch", "peft", "accelerate"),
    "mlx": ("mlx", "mlx_lm", "mlx_cpu"),
}
# One start for several commands, as most of its time goes into imports.
IN_TURN = """
import json, sys
from forgellm.cli.main import main
for arguments in json.loads(sys.argv[1]):
    assert main(arguments) == 0, arguments
"""


def environment_without(engine: str, folder: Path) -> dict[str, str]:
    """The installed packages, seen through a folder of links that leaves some out."""
    folder.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if entry.name.split("-")[0].split(".")[0] not in ABSENT[engine]:
            (folder / entry.name).symlink_to(entry)
    source = Path(package.__file__).parents[1]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(folder)])}


@pytest.mark.parametrize(("absent", "present"), [("torch", "mlx"), ("mlx", "torch")])
def test_one_engine_trains_answers_and_publishes(tmp_path: Path, absent: str, present: str) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    environment = environment_without(absent, tmp_path / "packages")

    def forgellm(*commands: Sequence[str]) -> str:
        # -S: no site-packages but the folder of links
        command = [sys.executable, "-S", "-c", IN_TURN, json.dumps(commands)]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=240,
            env=environment,
            cwd=workspace.root,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    train = ("train", "--model", "tiny", "--dataset", "notes", "--max-iterations", "3")
    quantise = ("models", "quantize", "tiny", "--bits", "8", "--group-size", "32")
    forgellm((*train, "--max-seq-length", "64", "--lora-rank", "4"), quantise)
    run = latest_run(workspace)
    assert run is not None
    assert run.record().engine == present
    flags = ("--prompt", "The brown fox", "--max-tokens", "8", "--temperature", "0")
    forgellm(("publish", "--run", run.name))
    published = published_models(workspace)
    assert len(published) == 2 and "tiny-8bit-g32" in published
    models = [("tiny", "--adapter-path", run.output_dir), *((f"published/{x}",) for x in published)]
    answers = forgellm(*(("cli", "generate", "--model", *model, *flags) for model in models))
    assert len([line for line in answers.splitlines() if line.strip()]) >= 3

    missing = subprocess.run(
        [sys.executable, "-S", "-c", f"import {absent}"], capture_output=True, env=environment
    )
    assert missing.returncode == 1  # it was really absent


def published_models(workspace: Workspace) -> list[str]:
    folder = workspace.models / "published"
    return [path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
