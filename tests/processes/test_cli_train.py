"""`forgellm train` and `forgellm demo` as a user runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgellm.cli.main import main
from forgellm.demo import lessons
from forgellm.demo.lessons import Lesson
from forgellm.demo.steps import Demo
from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.store import latest_run
from preference_pairs import write_preferences
from tiny_workspace import build_tiny_workspace, write_documents

FLAGS = (
    "--model tiny --dataset notes --dtype float32 --max-iterations 12 --batch-size 2"
    " --max-seq-length 64 --learning-rate 1e-2 --lora-rank 4 --save-every 4"
).split()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_tiny_workspace(tmp_path / "w")


def forgellm(
    workspace: Workspace, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "forgellm", *arguments],
        cwd=workspace.root,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_train_ends_with_the_best_checkpoint_and_a_command_that_works(
    workspace: Workspace,
) -> None:
    done = forgellm(workspace, "train", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert "Completed at iteration 12" in done.stderr
    assert re.search(r"iteration 12: loss \d+\.\d+, validation \d+\.\d+, \d+ tok/s", done.stderr)
    command = re.search(r"^Chat: forgellm (.*)$", done.stderr, re.MULTILINE)
    assert command is not None
    chat = forgellm(workspace, *command[1].split(), "--prompt", "the tide", "--max-tokens", "5")
    assert chat.returncode == 0, chat.stderr


def test_preferences_are_trained_from_named_columns(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_preferences(workspace, "preferred") / "pairs.jsonl"
    file.write_text(file.read_text().replace('"chosen"', '"better"').replace('"rejected"', '"no"'))
    flags = ["--workspace", str(workspace.root), "--training-type", "dpo", "--dataset", "preferred"]
    flags += ["--columns", "chosen=better,rejected=no", "--max-iterations", "2"]
    assert main(["train", *FLAGS, *flags]) == 0
    assert re.search(r"iteration 2: loss .*, reward accuracy \d+%, ", capsys.readouterr().err)
    run = latest_run(workspace)
    assert run is not None and run.output_dir.startswith("models/dpo/")


def test_a_recipe_file_with_flags_over_it(workspace: Workspace) -> None:
    recipe = {"model_name": "tiny", "dataset": "notes", "max_iterations": 500, "dtype": "float32"}
    (workspace.root / "run.yaml").write_text(yaml.safe_dump(recipe | {"learning_rate": "1e-2"}))
    done = forgellm(
        workspace, "train", "--config", "run.yaml", "--max-iterations", "2",
        "--max-seq-length", "32", "--lora-target", "q_proj,v_proj", "--grad-checkpoint",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = latest_run(workspace)
    assert run is not None
    used = run.record().recipe
    assert (used.max_iterations, used.max_seq_length, used.learning_rate) == (2, 32, 1e-2)
    assert used.lora_target == ["q_proj", "v_proj"]
    assert used.grad_checkpoint is True


def test_ctrl_c_keeps_a_checkpoint_and_resume_finishes_the_run(workspace: Workspace) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "forgellm", "train", *FLAGS, "--max-iterations", "4000",
         "--save-every", "2000"],
        cwd=workspace.root,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    run = None
    while run is None or run.state().iteration < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        run = latest_run(workspace)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Stopping" in errors
    stopped = run.state()
    assert stopped.phase == "stopped"
    assert checkpoints.find_checkpoint(run.folder, stopped.iteration)
    assert f"forgellm train --resume {run.name}" in errors

    record = run.record()
    shorter = record.recipe.model_copy(
        update={"max_iterations": stopped.iteration + 3, "warmup_steps": 0}
    )
    run.write_record(record.model_copy(update={"recipe": shorter}))
    done = forgellm(workspace, "train", "--resume", run.name)
    assert done.returncode == 0, done.stderr
    assert run.state().phase == "completed"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--model", "absent", "--dataset", "notes"], 1, "MODEL_NOT_FOUND"),
        (["--model", "tiny", "--dataset", "absent"], 1, "DATASET_NOT_FOUND"),
        (["--model", "tiny", "--dataset", "notes", "--batch-size", "none"], 2, "batch_size"),
        (["--dataset", "notes"], 2, "model_name"),
        (["--config", "absent.yaml"], 2, "absent.yaml"),
        (["--resume", "absent"], 1, "RUN_NOT_FOUND"),
        (["--resume", "x", "--seed", "3"], 2, "--resume"),
    ],
)
def test_failures_are_one_line_and_an_exit_code(
    workspace: Workspace,
    arguments: list[str],
    exit_code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", *arguments, "--workspace", str(workspace.root)]) == exit_code
    errors = capsys.readouterr().err
    assert words in errors.splitlines()[0]
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", ["CPT", "IFT"])
def test_the_demo_measures_before_and_after_and_is_quick_the_second_time(
    name: str,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole demo, with a tiny model in the place of SmolLM2."""
    shipped: Lesson = getattr(lessons, name)
    small = workspace.root / "recipe.yaml"
    recipe = yaml.safe_load(shipped.recipe_file.read_text())
    recipe |= {"max_iterations": 4, "warmup_steps": 1, "eval_every": 2, "save_every": 2}
    recipe |= {"dtype": "float32", "max_seq_length": 128, "lora_rank": 4}
    small.write_text(yaml.safe_dump(recipe))
    num_questions = min(shipped.num_questions, 2)
    lesson = replace(shipped, recipe_file=small, num_questions=num_questions)
    monkeypatch.setattr(lessons, name, lesson)
    (workspace.base_models / "tiny").rename(workspace.base_models / "SmolLM2-135M-Instruct")
    flag = [] if name == "CPT" else ["--ift"]
    command = ["demo", *flag, "--workspace", str(workspace.root)]

    assert main(command) == 0
    shown = capsys.readouterr().out
    words = ["held-out", lesson.held_out, "general text", "right", "tok/s", "peak memory", "Chat"]
    for word in [*words, *(["answered right", "before: ", "after: "] if num_questions else [])]:
        assert word in shown
    run = latest_run(workspace)
    assert run is not None
    assert run.record().recipe.training_type == name.lower()
    assert (run.folder / "training_dashboard.png").read_bytes().startswith(b"\x89PNG")
    saved = Demo.open(workspace, lesson, fresh=False)
    assert saved.before is not None and saved.after is not None
    assert saved.after.held_out_loss < saved.before.held_out_loss
    assert len(saved.after.answers) == num_questions
    best = checkpoints.best_checkpoint(run.folder)
    assert best is not None and best.validation_loss == pytest.approx(
        saved.after.held_out_loss, rel=1e-4
    )
    other = lessons.IFT if name == "CPT" else lessons.CPT
    assert Demo.open(workspace, other, fresh=False).before is None

    assert main(command) == 0
    assert capsys.readouterr().out == shown
    assert main([*command, "--fresh"]) == 0
    newer = latest_run(workspace)
    assert newer is not None and newer.name != run.name


def test_queue_waits_for_the_run_before_it(workspace: Workspace) -> None:
    write_documents(workspace, "more", 4)
    first = subprocess.Popen(
        [sys.executable, "-m", "forgellm", "train", *FLAGS, "--max-iterations", "30"],
        cwd=workspace.root,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while (run := latest_run(workspace)) is None or not run.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    refused = forgellm(workspace, "train", *FLAGS)
    assert refused.returncode == 1
    assert "TRAINING_ALREADY_RUNNING" in refused.stderr
    queued = forgellm(workspace, "train", *FLAGS, "--queue")
    assert queued.returncode == 0, queued.stderr
    assert first.wait(60) == 0


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("TORCHELASTIC_RUN_ID", "forgellm train starts what torchrun would"),
        ("MLX_RANK", "mlx.launch says which processes there are"),
    ],
)
def test_processes_are_not_started_twice(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    words: str,
) -> None:
    monkeypatch.setenv(variable, "0")
    flags = ["--workspace", str(workspace.root), "--nproc-per-node", "2"]
    assert main(["train", *FLAGS, *flags]) == 2
    assert words in capsys.readouterr().err


def test_two_processes_are_watched_from_the_terminal_and_resumed_by_one(
    workspace: Workspace,
) -> None:
    done = forgellm(workspace, "train", *FLAGS, "--nproc-per-node", "2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"iteration 12: loss \d+\.\d+, validation \d+\.\d+, \d+ tok/s", done.stderr)
    run = latest_run(workspace)
    assert run is not None and len(run.state().processes) == 2
    checkpoints._remove(run.folder, "0000012")
    flags = ["--workspace", str(workspace.root), "--resume", run.name, "--nproc-per-node", "1"]
    assert main(["train", *flags]) == 0
    assert run.state().iteration == 12 and run.record().recipe.num_processes == 1
