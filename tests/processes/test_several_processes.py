"""Several torch processes train as one does, and end in order whatever becomes of one of them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from forgellm import supervisor
from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.store import Run
from several_processes import (
    assert_same_curve,
    assert_same_weights,
    lines_of,
    resume_alone,
    start,
    train_alone,
    wait,
    wait_until,
    weights,
    workers,
)
from tiny_workspace import build_tiny_workspace

FULL = {"fine_tune_type": "full", "grad_accum_steps": 2}
LONG = {"max_iterations": 100_000, "save_every": 5, "val_batches": 1}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_tiny_workspace(tmp_path / "w")


@pytest.mark.parametrize(
    ("kind", "parallelism"),
    [
        pytest.param({}, "ddp", id="lora-ddp"),
        pytest.param(FULL, "fsdp", id="full-fsdp"),
        pytest.param({}, "fsdp", id="lora-fsdp", marks=pytest.mark.slow),
        pytest.param(FULL, "ddp", id="full-ddp", marks=pytest.mark.slow),
        pytest.param({"engine": "mlx"}, "ddp", id="lora-mlx", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(
    workspace: Workspace, kind: dict[str, Any], parallelism: str
) -> None:
    expected = train_alone(workspace, **kind)
    run = start(workspace, nproc_per_node=2, parallelism=parallelism, **kind)
    state = wait(run)
    assert state.phase == "completed", run.log_file.read_text()
    assert [figures.rank for figures in state.processes] == [0, 1]
    assert all(figures.memory_usage_gb > 0 for figures in state.processes)
    assert all(figures.tokens_per_second > 0 for figures in state.processes)
    assert_same_curve(run, expected)
    assert_same_weights(weights(run, 6), weights(expected, 6))


def test_what_two_processes_kept_one_continues(workspace: Workspace) -> None:
    """Moments and weights written by both, a share each."""
    run = start(workspace, nproc_per_node=2, parallelism="fsdp", **FULL)
    assert wait(run).phase == "completed", run.log_file.read_text()
    shares = [path.name for path in checkpoints.find_checkpoint(run.folder, 3).folder.iterdir()]
    assert {f"optimizer-0000{n}-of-00002.safetensors" for n in (1, 2)} <= set(shares)
    expected = weights(run, 6)
    checkpoints._remove(run.folder, "0000006")
    resume_alone(workspace, run)
    assert_same_weights(weights(run, 6), expected)


@pytest.mark.slow
def test_what_one_process_kept_two_continue(workspace: Workspace) -> None:
    expected = train_alone(workspace, nproc_per_node=2)
    kept = weights(expected, 6)
    checkpoints._remove(expected.folder, "0000006")
    supervisor.resume_training(workspace, expected)
    assert wait(expected).phase == "completed", expected.log_file.read_text()
    assert_same_weights(weights(expected, 6), kept)


@pytest.mark.slow
def test_a_stop_request_ends_all_with_a_checkpoint(workspace: Workspace) -> None:
    run = start_long(workspace)
    supervisor.stop_training(workspace, run)
    state = wait(run)
    assert (state.phase, state.error) == ("stopped", None), run.log_file.read_text()
    assert checkpoints.list_checkpoints(run.folder)[-1].iteration == state.iteration


def test_sigterm_stops_all_as_a_request_does(workspace: Workspace) -> None:
    """What a batch system sends before it takes the machine away. No port is open meanwhile."""
    run = start_long(workspace)
    trainer = next(iter(workers(run).values())).parent()
    assert trainer is not None
    for process in (trainer, *workers(run).values()):
        listening = [c.laddr.ip for c in process.net_connections() if c.status == "LISTEN"]
        assert set(listening) <= {"127.0.0.1"}, listening
    trainer.terminate()
    state = wait(run)
    assert (state.phase, state.error) == ("stopped", None), run.log_file.read_text()
    assert checkpoints.list_checkpoints(run.folder)[-1].iteration == state.iteration


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_is_named_and_its_run_can_be_resumed(
    workspace: Workspace, rank: int
) -> None:
    run = start_long(workspace)
    workers(run)[rank].kill()
    state = wait(run)
    assert state.phase == "interrupted", run.log_file.read_text()
    assert state.error is not None
    assert state.error["error"] == f"Process {rank} of 2 was ended by SIGKILL"
    assert checkpoints.newest_verified(run.folder)[0] is not None


@pytest.mark.slow
def test_a_lost_process_is_replaced_as_often_as_asked(workspace: Workspace) -> None:
    run = start_long(workspace, max_restarts=1)
    victims = workers(run)
    victims[1].kill()
    newest = checkpoints.list_checkpoints(run.folder)[-1].iteration
    wait_until(lambda: has_replaced(run, victims), 60, run)
    wait_until(lambda: lines_of(run)[-1].iteration > newest + 5, 60, run)
    assert "resuming from iteration" in run.log_file.read_text()
    workers(run)[0].kill()
    state = wait(run)
    assert state.phase == "interrupted"
    assert state.error is not None
    assert state.error["error"] == "Process 0 of 2 was ended by SIGKILL, after 1 new starts"


@pytest.mark.slow
def test_a_process_that_hangs_is_not_waited_for_without_end(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGELLM_COLLECTIVE_TIMEOUT", "4")
    run = start_long(workspace)
    workers(run)[1].send_signal(signal.SIGSTOP)
    state = wait(run, 60)
    assert state.phase == "interrupted", run.log_file.read_text()
    assert state.error is not None
    assert state.error["error"] == "Process 1 of 2 did not answer, and was ended"


def test_a_failure_of_one_ends_all_with_its_error(workspace: Workspace) -> None:
    run = start(workspace, nproc_per_node=2, max_restarts=3, **LONG)
    (run.folder / "checkpoints").write_text("in the way")
    state = wait(run)
    assert state.phase == "failed", run.log_file.read_text()
    assert state.error is not None
    assert state.error["error_code"] == "TRAINING_FAILED"
    assert "lost the others" not in run.log_file.read_text()


def test_processes_end_with_the_trainer_that_holds_their_run(workspace: Workspace) -> None:
    run = start_long(workspace)
    found = list(workers(run).values())
    trainer = found[0].parent()
    assert trainer is not None
    trainer.kill()
    wait_until(lambda: not any(process.is_running() for process in found), 20, run)
    assert run.state().phase == "interrupted"


def start_long(workspace: Workspace, **fields: Any) -> Run:
    """A run that has kept a checkpoint and goes on."""
    run = start(workspace, nproc_per_node=2, **{**LONG, **fields})
    wait_until(lambda: checkpoints.list_checkpoints(run.folder), 60, run)
    return run


def has_replaced(run: Run, victims: dict[int, Any]) -> bool:
    found = workers(run)
    return len(found) == 2 and not {p.pid for p in found.values()} & {
        p.pid for p in victims.values()
    }
