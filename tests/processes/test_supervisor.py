"""Trainers as real processes: started once, handed the lock, stopped, killed, resumed, queued.

A small script stands in for the trainer; it keeps to the same files and the same lock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import orjson
import psutil
import pytest

from forgellm.errors import (
    CheckpointNotFound,
    NoActiveTraining,
    RunBusy,
    TrainingAlreadyRunning,
    WorkerDied,
)
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import write_checkpoint
from forgellm.runs.holder import Holder, boot_id, process_started
from forgellm.runs.lock import RunLock, holder, is_locked
from forgellm.runs.store import Run, active_run, create_run, list_runs
from forgellm.schema.recipe import Recipe
from forgellm.schema.run import RunState
from forgellm.supervisor import (
    Supervisor,
    claim_new_run,
    claim_resume,
    enforce_stop,
    launch,
    resume_training,
    start_training,
    stop_training,
)

TRAINER = """
import os, signal, subprocess, sys, time
from pathlib import Path

if os.environ.get("STAND_IN_SLOW_START"):
    time.sleep(0.5)

from forgellm.paths import find_workspace
from forgellm.runs.lock import take_lock
from forgellm.runs.store import open_run
from forgellm.schema.run import RunState

folder = Path(sys.argv[1])
lock = take_lock(folder)
run = open_run(find_workspace(), folder)
stubborn = os.environ.get("STAND_IN_STUBBORN")
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "child").write_text(str(child.pid))
print("arguments", sys.argv[2:], "cwd", os.getcwd(), "stdin", sys.stdin.read(), flush=True)
iteration = 0
while stubborn or not run.stop_requested():
    iteration += 1
    run.write_state(RunState(phase="training", iteration=iteration))
    time.sleep(0.01)
run.write_state(RunState(phase="stopped", iteration=iteration))
"""

Command = tuple[str, ...]


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path / "workspace")
    workspace.root.mkdir()
    yield workspace
    while (run := active_run(workspace)) is not None:
        run.request_stop(grace_seconds=0)
        enforce_stop(run)
        eventually(lambda run=run: not run.is_alive())


@pytest.fixture
def command(tmp_path: Path) -> Command:
    script = tmp_path / "stand_in.py"
    script.write_text(TRAINER)
    return (sys.executable, "-P", str(script))


def recipe(**fields: object) -> Recipe:
    return Recipe.model_validate({"model_name": "m", "dataset": "d", **fields})


def start(workspace: Workspace, command: Command, **fields: object) -> Run:
    return start_training(workspace, recipe(**fields), max_seq_length=64, command=command)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_training(run: Run) -> bool:
    return run.state().iteration > 0 and run.state().phase == "training"


def kill_trainer(run: Run) -> None:
    trainer = holder(run.folder)
    assert trainer is not None and trainer.is_running()
    os.kill(trainer.pid, signal.SIGKILL)
    eventually(lambda: not run.is_alive())


def test_trainer_runs_detached_in_the_workspace(workspace: Workspace, command: Command) -> None:
    run = start(workspace, command)
    assert run.is_alive()
    eventually(lambda: is_training(run))
    trainer = holder(run.folder)
    assert trainer is not None
    assert os.getsid(trainer.pid) == os.getpgid(trainer.pid) == trainer.pid
    assert run.log_file.read_text() == f"arguments [] cwd {workspace.root} stdin \n"
    if sys.platform == "linux":
        assert Path(f"/proc/{trainer.pid}/oom_score_adj").read_text() == "500\n"


def test_stop_request_is_honoured_and_the_trainer_reaped(
    workspace: Workspace, command: Command
) -> None:
    run = start(workspace, command)
    eventually(lambda: is_training(run))
    trainer = holder(run.folder)
    assert trainer is not None
    assert stop_training(workspace) == run
    eventually(lambda: not run.is_alive())
    assert run.state().phase == "stopped"
    eventually(lambda: not psutil.pid_exists(trainer.pid))
    with pytest.raises(NoActiveTraining):
        stop_training(workspace)
    with pytest.raises(NoActiveTraining):
        stop_training(workspace, run)


def test_killed_trainer_is_interrupted_and_its_death_noted(
    workspace: Workspace, command: Command
) -> None:
    run = start(workspace, command)
    eventually(lambda: is_training(run))
    kill_trainer(run)
    assert run.state().phase == "interrupted"
    Supervisor(workspace, command=command).tick()
    state = run.written_state()
    assert state.phase == "interrupted" and state.iteration > 0
    assert state.error is not None and state.error["error_code"] == WorkerDied.code
    assert not run.is_alive()


def test_lock_is_held_without_a_gap_from_launch_on(
    workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_SLOW_START", "1")
    run = create_run(workspace, recipe(), 64, phase="queued")
    seen: list[bool] = []
    finished = threading.Event()

    def watch() -> None:
        while not finished.is_set():
            seen.append(is_locked(run.folder))

    watcher = threading.Thread(target=watch)
    watcher.start()
    launch(run, command=command)
    with pytest.raises(RunBusy):
        RunLock(run.folder).acquire()
    eventually(lambda: is_training(run))
    finished.set()
    watcher.join()
    assert all(seen[seen.index(True) :])


def test_inherited_lock_is_not_passed_on(workspace: Workspace, command: Command) -> None:
    run = start(workspace, command)
    eventually(lambda: is_training(run))
    trainer = holder(run.folder)
    assert trainer is not None
    environment = psutil.Process(trainer.pid).environ()  # as given at the start
    fd = int(environment["FORGELLM_LOCK_FD"])
    if sys.platform == "linux":
        flags = Path(f"/proc/{trainer.pid}/fdinfo/{fd}").read_text().split("flags:")[1].split()[0]
        assert int(flags, 8) & os.O_CLOEXEC


def test_trainer_that_ignores_stop_is_ended_with_its_children(
    workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_STUBBORN", "1")
    supervisor = Supervisor(workspace, command=command)
    run = start(workspace, command)
    eventually(lambda: is_training(run))
    child = psutil.Process(int((run.folder / "child").read_text()))

    stop_training(workspace, grace_seconds=600)
    supervisor.tick()
    assert run.is_alive() and child.is_running()

    stop_training(workspace, grace_seconds=0)
    supervisor.tick()
    eventually(lambda: not run.is_alive())
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    supervisor.tick()
    state = run.state()
    assert state.phase == "stopped" and state.iteration > 0 and state.error is not None


@pytest.mark.parametrize(
    "change",
    [{}, {"boot_id": "an earlier boot"}, {"started": 1.0}, {"pid": 2**22 + 1}, None],
    ids=["stale start", "other boot", "other start", "no such process", "empty file"],
)
def test_foreign_process_is_never_signalled(
    workspace: Workspace, change: dict[str, object] | None
) -> None:
    """The lock is held, but the file names a number that now belongs to someone else."""
    run = create_run(workspace, recipe(), 64)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as foreign:
        started = process_started(foreign.pid)
        assert started is not None
        recycled = Holder(foreign.pid, started - (change == {}), boot_id())
        with RunLock(run.folder).acquire() as lock:
            text = b"" if change is None else orjson.dumps(asdict(recycled) | change)
            os.truncate(run.folder / "run.lock", 0)
            os.pwrite(lock.fileno(), text, 0)
            run.request_stop(grace_seconds=0)
            assert not enforce_stop(run)
            Supervisor(workspace).tick()
            assert foreign.poll() is None
        foreign.communicate(b"\n")
        assert foreign.returncode == 0


def test_process_named_by_a_free_lock_is_never_signalled(workspace: Workspace) -> None:
    run = create_run(workspace, recipe(), 64)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as former:
        with RunLock(run.folder).acquire() as lock:
            lock.write_holder(former.pid)
        run.request_stop(grace_seconds=0)
        assert not enforce_stop(run)
        former.communicate(b"\n")
        assert former.returncode == 0


def test_process_that_leads_no_group_is_ended_alone(workspace: Workspace, tmp_path: Path) -> None:
    """A run in the foreground of a script: the script itself must live."""
    run = create_run(workspace, recipe(), 64)
    code = "import sys, time; from forgellm.runs.lock import *; from pathlib import Path\n"
    code += "lock = take_lock(Path(sys.argv[1])); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(run.folder)]) as trainer:
        eventually(lambda: (h := holder(run.folder)) is not None and h.pid == trainer.pid)
        run.request_stop(grace_seconds=0)
        assert enforce_stop(run)
        assert trainer.wait(60) == -signal.SIGKILL


def test_one_of_many_starts_wins(workspace: Workspace, command: Command, tmp_path: Path) -> None:
    """Threads of this process and of a second one, as two web servers would."""
    go = tmp_path / "go"
    second = subprocess.Popen(
        [sys.executable, "-c", SECOND_SERVER, str(workspace.root), str(go), *command],
        stdout=subprocess.PIPE,
    )

    def attempt(_: int) -> str:
        eventually(go.exists)
        try:
            return start(workspace, command).record().training_id
        except TrainingAlreadyRunning as refused:
            return f"refused: {refused.details['training_id']}"

    with second, ThreadPoolExecutor(10) as pool:
        attempts = pool.map(attempt, range(10))
        assert second.stdout is not None and second.stdout.readline() == b"ready\n"
        go.touch()
        outcomes = [*attempts, *second.stdout.read().decode().split("\n")[:-1]]
    assert len(outcomes) == 20
    (winner,) = (outcome for outcome in outcomes if not outcome.startswith("refused"))
    assert outcomes.count(f"refused: {winner}") == 19
    assert [run.record().training_id for run in list_runs(workspace)] == [winner]


SECOND_SERVER = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from forgellm.errors import TrainingAlreadyRunning
from forgellm.paths import Workspace
from forgellm.schema.recipe import Recipe
from forgellm.supervisor import start_training

root, go, *command = sys.argv[1:]

def attempt(_):
    while not Path(go).exists():
        time.sleep(0.001)
    recipe = Recipe(model_name="m", dataset="d")
    try:
        run = start_training(Workspace(Path(root)), recipe, max_seq_length=64, command=command)
        return run.record().training_id
    except TrainingAlreadyRunning as refused:
        return "refused: " + refused.details["training_id"]

with ThreadPoolExecutor(10) as pool:
    attempts = pool.map(attempt, range(10))
    print("ready", flush=True)
    print(*attempts, sep="\\n", flush=True)
"""


def test_run_in_the_foreground_counts_as_running(workspace: Workspace, command: Command) -> None:
    run, lock = claim_new_run(workspace, recipe(), max_seq_length=64)
    with lock:
        assert active_run(workspace) == run
        with pytest.raises(TrainingAlreadyRunning):
            start(workspace, command)
        with pytest.raises(TrainingAlreadyRunning):
            claim_new_run(workspace, recipe(), max_seq_length=64)
    assert len(list_runs(workspace)) == 1


def save_checkpoint(run: Run, iteration: int) -> None:
    def write_weights(folder: Path, stem: str) -> None:
        (folder / f"{stem}_adapters.safetensors").write_bytes(b"weights")

    write_checkpoint(run.folder, iteration, None, write_weights, lambda folder: None, {})


def test_resume_continues_a_dead_run_from_its_checkpoint(
    workspace: Workspace, command: Command
) -> None:
    run = start(workspace, command)
    eventually(lambda: is_training(run))
    with pytest.raises(CheckpointNotFound):
        resume_training(workspace, run, command=command)
    save_checkpoint(run, 5)
    with pytest.raises(TrainingAlreadyRunning):
        resume_training(workspace, run, command=command)
    stop_training(workspace)
    eventually(lambda: not run.is_alive())

    resume_training(workspace, run, command=command)
    assert run.is_alive() and not run.stop_requested()
    eventually(lambda: "['--resume']" in run.log_file.read_text())
    eventually(lambda: is_training(run))
    kill_trainer(run)

    with claim_resume(workspace, run):
        assert run.is_alive()
    (run.folder / "0000005_adapters.safetensors").write_bytes(b"wEights")
    with pytest.raises(CheckpointNotFound) as caught:
        resume_training(workspace, run, command=command)
    assert "0000005_adapters.safetensors" in caught.value.details["damaged"][0]


def test_queued_runs_start_in_order_when_the_one_before_ends(
    workspace: Workspace, command: Command
) -> None:
    supervisor = Supervisor(workspace, command=command)
    first = start(workspace, command, queue=True)  # nothing runs: it starts at once
    second = start(workspace, command, queue=True)
    dropped = start(workspace, command, queue=True)
    third = start(workspace, command, queue=True)
    assert first.is_alive()
    supervisor.tick()
    assert [run.state().phase for run in (second, dropped, third)] == ["queued"] * 3
    assert stop_training(workspace, dropped) == dropped
    for ending, starting in ((first, second), (second, third)):
        eventually(lambda run=ending: is_training(run))
        stop_training(workspace)
        eventually(lambda run=ending: not run.is_alive())
        supervisor.tick()
        assert active_run(workspace) == starting
    assert dropped.state().phase == "stopped"


def test_supervisor_thread_does_its_rounds_until_closed(
    workspace: Workspace, command: Command
) -> None:
    dead = create_run(workspace, recipe(), 64)
    dead.write_state(RunState(phase="training", iteration=3))
    waiting = create_run(workspace, recipe(), 64, phase="queued")
    supervisor = Supervisor(workspace, command=command, interval_seconds=0.01)
    supervisor.start()
    eventually(lambda: dead.written_state().phase == "interrupted")
    eventually(lambda: is_training(waiting))
    supervisor.close()
    assert is_training(waiting)  # trainers outlive their supervisor


def test_supervisor_outlives_a_failing_round(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    create_run(workspace, recipe(), 64, phase="queued")
    broken = Supervisor(workspace, command=("/nonexistent/python",), interval_seconds=0.01)
    broken.start()
    eventually(lambda: caplog.records)
    (run,) = list_runs(workspace)
    eventually(lambda: run.state().phase == "failed")
    later = create_run(workspace, recipe(), 64, phase="queued")
    eventually(lambda: later.state().phase == "failed")
    broken.close()


def test_trainer_that_cannot_be_started_is_a_failed_run(workspace: Workspace) -> None:
    with pytest.raises(WorkerDied):
        start(workspace, ("/nonexistent/python",))
    (run,) = list_runs(workspace)
    state = run.state()
    assert state.phase == "failed" and state.error is not None
    assert not run.is_alive()
