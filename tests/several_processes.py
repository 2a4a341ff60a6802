"""Runs of several processes, as the web server or `forgellm train` starts them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import safetensors.numpy

from forgellm import supervisor
from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.lock import holder
from forgellm.runs.metrics import effective, read_lines
from forgellm.runs.store import Run
from forgellm.schema.run import MetricsLine, RunState
from forgellm.training.session import Session
from tiny_workspace import tiny_recipe

Arrays = dict[str, np.ndarray]


def recipe_of(**fields: Any) -> Any:
    base = {"engine": "torch", "batch_size": 4, "max_iterations": 6, "save_every": 3}
    return tiny_recipe(**{**base, **fields})


def train_alone(workspace: Workspace, **fields: Any) -> Run:
    """To the end, in this process."""
    run, lock = supervisor.claim_new_run(workspace, recipe_of(**fields), max_seq_length=64)
    with lock:
        Session().train(run)
    return run


def resume_alone(workspace: Workspace, run: Run) -> None:
    """To the end, by one process, whatever the recipe asks for."""
    with supervisor.claim_resume(workspace, run):
        Session().train(run, resume=True)


def start(workspace: Workspace, **fields: Any) -> Run:
    return supervisor.start_training(workspace, recipe_of(**fields), max_seq_length=64)


def wait(run: Run, seconds: float = 120) -> RunState:
    """The state that the run ended in."""
    wait_until(lambda: not run.is_alive(), seconds, run)
    return run.state()


def wait_until(holds: Callable[[], object], seconds: float, run: Run) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, run.log_file.read_text()[-3000:]
        time.sleep(0.05)


def workers(run: Run) -> dict[int, psutil.Process]:
    """The processes of a run by their numbers, as far as they have started."""
    trainer = holder(run.folder)
    if trainer is None or not psutil.pid_exists(trainer.pid):
        return {}
    found = {}
    for process in psutil.Process(trainer.pid).children():
        try:
            found[int(process.environ()["RANK"])] = process
        except (psutil.Error, KeyError):
            continue
    return found


def lines_of(run: Run) -> list[MetricsLine]:
    return list(effective(read_lines(run.folder)[0]))


def weights(run: Run, iteration: int) -> Arrays:
    path = checkpoints.find_checkpoint(run.folder, iteration).weights
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found: Arrays = {}
    for file in files:
        found |= safetensors.numpy.load_file(file)
    return found


def assert_same_curve(found: Run, expected: Run) -> None:
    for one, other in zip(lines_of(expected), lines_of(found), strict=True):
        assert (one.iteration, one.trained_tokens) == (other.iteration, other.trained_tokens)
        for field in ("training_loss", "validation_loss", "grad_norm"):
            value = getattr(one, field)
            assert getattr(other, field) == (value and pytest.approx(value, rel=1e-4)), field


def assert_same_weights(found: Arrays, expected: Arrays) -> None:
    """Of each whole matrix: Adam makes much of the rounding of a gradient that is almost zero."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.linalg.norm(found[name] - value) < 1e-4 * np.linalg.norm(value), name
