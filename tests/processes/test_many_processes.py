"""What several processes promise, at length: fifty steps on two and four, twenty lost processes."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgellm import supervisor
from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from several_processes import (
    assert_same_curve,
    assert_same_weights,
    resume_alone,
    start,
    train_alone,
    wait,
    wait_until,
    weights,
    workers,
)
from tiny_workspace import build_tiny_workspace

pytestmark = pytest.mark.slow

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 1e-3},
    "full": {"fine_tune_type": "full", "learning_rate": 1e-3},
}
FIFTY = {"max_iterations": 50, "save_every": 25}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return build_tiny_workspace(Path(tmp_path_factory.mktemp("many")) / "w")


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [2, 4])
def test_fifty_steps_are_those_of_one_process(
    workspace: Workspace, kind: str, parallelism: str, number: int
) -> None:
    expected = train_alone(workspace, **FIFTY, **KINDS[kind])
    fields = {**FIFTY, **KINDS[kind], "nproc_per_node": number, "parallelism": parallelism}
    run = start(workspace, **fields)
    assert wait(run, 300).phase == "completed", run.log_file.read_text()
    assert_same_curve(run, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_four_kept_one_and_two_continue(workspace: Workspace, kind: str) -> None:
    run = start(workspace, nproc_per_node=4, parallelism="fsdp", **KINDS[kind])
    assert wait(run, 300).phase == "completed", run.log_file.read_text()
    expected = weights(run, 6)
    checkpoints._remove(run.folder, "0000006")
    resume_alone(workspace, run)
    assert_same_weights(weights(run, 6), expected)

    checkpoints._remove(run.folder, "0000006")
    record = run.record()
    recipe = record.recipe.model_copy(update={"nproc_per_node": 2})
    run.write_record(record.model_copy(update={"recipe": recipe}))
    supervisor.resume_training(workspace, run)
    assert wait(run, 300).phase == "completed", run.log_file.read_text()
    assert_same_weights(weights(run, 6), expected)


def test_twenty_lost_processes_change_nothing(workspace: Workspace) -> None:
    fields = {"nproc_per_node": 2, "max_iterations": 3000, "save_every": 20, "val_batches": 1}
    uninterrupted = start(workspace, **fields, learning_rate=1e-3)
    assert wait(uninterrupted, 300).phase == "completed"
    run = start(workspace, **fields, learning_rate=1e-3, max_restarts=20)
    rng = random.Random(3)
    killed: set[int] = set()
    for number in range(20):
        wait_until(lambda: len(workers(run)) == 2, 120, run)
        time.sleep(rng.uniform(0, 9))
        victim = workers(run).get(number % 2)
        assert victim is not None and run.is_alive(), f"too short a run: {number} kills"
        victim.kill()
        killed.add(victim.pid)
        wait_until(lambda: not killed & {p.pid for p in workers(run).values()}, 60, run)
    assert wait(run, 600).phase == "completed", run.log_file.read_text()
    expected, found = weights(uninterrupted, 3000), weights(run, 3000)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
