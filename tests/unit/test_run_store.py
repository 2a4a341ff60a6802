"""The run folders: created without collisions, found by any name, alive only while locked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from forgellm.errors import ConfigError, RunBusy, RunNotFound
from forgellm.paths import Workspace
from forgellm.runs.holder import Holder, boot_id, process_started
from forgellm.runs.lock import RunLock, holder, is_locked
from forgellm.runs.store import (
    Run,
    active_run,
    create_run,
    find_run,
    latest_run,
    list_runs,
    open_run,
)
from forgellm.schema.recipe import TRAINING_TYPES, Recipe
from forgellm.schema.run import ACTIVE_PHASES, RunState

NOON = datetime(2025, 1, 15, 12, 30, 45, tzinfo=UTC)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def recipe(**fields: object) -> Recipe:
    return Recipe.model_validate({"model_name": "org/Tiny-1", "dataset": "d", **fields})


def new_run(workspace: Workspace, **fields: object) -> Run:
    return create_run(workspace, recipe(**fields), 128, now=NOON)


def test_name_and_id_follow_the_spec(workspace: Workspace) -> None:
    run = new_run(workspace, learning_rate=5e-5)
    assert run.output_dir == "models/cpt/Tiny_1_lr5e_05_bs2_iter500_seq128_2025-01-15_12-30"
    record = run.record()
    assert record.training_id == "cpt_20250115_123045"
    assert record.name == run.name
    assert record.recipe.max_seq_length == 128
    assert run.written_state().phase == "preparing"


def test_taken_names_and_ids_get_a_suffix(workspace: Workspace) -> None:
    runs = [new_run(workspace, learning_rate=rate) for rate in (1e-4, 1e-4, 2e-4)]
    assert [run.name.rpartition("12-30")[2] for run in runs] == ["", "_2", ""]
    ids = [run.record().training_id for run in runs]
    assert ids == [f"cpt_20250115_123045{suffix}" for suffix in ("", "_2", "_3")]


def test_runs_created_at_once_are_all_different(workspace: Workspace) -> None:
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda _: new_run(workspace), range(48)))
    assert len({run.folder for run in runs}) == 48
    assert len({run.record().training_id for run in runs}) == 48


def test_recipe_that_contradicts_itself_once_resolved_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="min_lr"):
        new_run(workspace, min_lr=0.5)
    assert list_runs(workspace) == []


def test_run_is_found_by_name_id_and_path(workspace: Workspace) -> None:
    run = new_run(workspace, training_type="ift")
    folder = run.folder
    for wanted in (run.name, "ift_20250115_123045", run.output_dir, f"ift/{run.name}", str(folder)):
        assert find_run(workspace, wanted) == run


@pytest.mark.parametrize("wanted", ["", "nothing", "..", "/etc", "models/cpt", "\x00", "~"])
def test_unknown_run_names_where_was_searched(workspace: Workspace, wanted: str) -> None:
    new_run(workspace)
    with pytest.raises(RunNotFound) as caught:
        find_run(workspace, wanted)
    assert caught.value.details["searched_paths"] == [f"models/{kind}" for kind in TRAINING_TYPES]


def test_runs_are_listed_newest_first_and_broken_ones_skipped(workspace: Workspace) -> None:
    older = create_run(workspace, recipe(), 128, now=NOON)
    newer = create_run(workspace, recipe(training_type="ift"), 128, now=NOON.replace(hour=13))
    for name, text in (("empty", b""), ("torn", b'{"training_id": "cp'), ("array", b"[1]")):
        folder = workspace.runs("cpt") / name
        folder.mkdir()
        (folder / "run.json").write_bytes(text)
    (workspace.runs("cpt") / "half_made").mkdir()
    assert list_runs(workspace) == [newer, older]
    assert latest_run(workspace) == newer
    with pytest.raises(RunNotFound):
        open_run(workspace, workspace.runs("cpt") / "torn")


def test_workspace_without_models_has_no_runs(workspace: Workspace) -> None:
    assert list_runs(workspace) == []
    assert active_run(workspace) is None
    assert latest_run(workspace) is None


def test_run_is_alive_exactly_while_its_lock_is_held(workspace: Workspace) -> None:
    run = new_run(workspace)
    run.write_state(RunState(phase="training", iteration=7, eta_minutes=3.0))
    assert run.state().phase == "interrupted"
    with RunLock(run.folder).acquire():
        assert active_run(workspace) == run
        assert run.state().phase == "training"
    assert active_run(workspace) is None
    assert run.state() == RunState(phase="interrupted", iteration=7)
    assert run.written_state().phase == "training"  # looking changes nothing


@pytest.mark.parametrize("phase", ["queued", "completed", "stopped", "failed"])
def test_phases_that_need_no_trainer_are_reported_as_written(
    workspace: Workspace, phase: str
) -> None:
    run = new_run(workspace)
    run.write_state(RunState.model_validate({"phase": phase}))
    assert run.state().phase == phase


def test_unreadable_state_is_an_interrupted_run(workspace: Workspace) -> None:
    run = new_run(workspace)
    (run.folder / "state.json").write_bytes(b'{"phase": "trai')
    assert run.state().phase == "interrupted"


def test_state_is_never_seen_in_part(workspace: Workspace) -> None:
    run = new_run(workspace)
    done = threading.Event()

    def write() -> None:
        for iteration in range(100):
            run.write_state(RunState(phase="queued", iteration=iteration, heartbeat="x" * 3000))
        done.set()

    run.write_state(RunState(phase="queued"))
    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not done.is_set():
        seen.append(run.written_state())
    writer.join()
    assert all(state.phase == "queued" for state in seen)  # a torn file would read as preparing
    assert [s.iteration for s in seen] == sorted(s.iteration for s in seen)


def test_run_that_ends_while_looked_at_is_not_interrupted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(workspace)
    run.write_state(RunState(phase="training"))

    def ends_just_before_the_probe(folder: Path) -> bool:
        run.write_state(RunState(phase="completed"))
        return False

    monkeypatch.setattr("forgellm.runs.store.is_locked", ends_just_before_the_probe)
    assert run.state().phase == "completed"


def test_run_that_is_resumed_while_looked_at_is_not_interrupted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(workspace)
    run.write_state(RunState(phase="training"))
    probes: list[bool] = []

    def resumed_just_after_the_first_probe(folder: Path) -> bool:
        run.write_state(RunState(phase="preparing"))
        probes.append(bool(probes))
        return probes[-1]

    monkeypatch.setattr("forgellm.runs.store.is_locked", resumed_just_after_the_first_probe)
    assert run.state().phase == "preparing"


def test_second_holder_is_refused(workspace: Workspace) -> None:
    folder = new_run(workspace).folder
    with RunLock(folder).acquire():
        with pytest.raises(RunBusy):
            RunLock(folder).acquire()
        assert holder(folder) == Holder(os.getpid(), process_started(os.getpid()) or 0, boot_id())
    RunLock(folder).acquire().release()


def test_probing_does_not_keep_a_trainer_from_its_lock(workspace: Workspace) -> None:
    folder = new_run(workspace).folder
    stopping = threading.Event()

    def probe() -> None:
        while not stopping.is_set():
            is_locked(folder)

    probes = [threading.Thread(target=probe) for _ in range(4)]
    for thread in probes:
        thread.start()
    for _ in range(100):
        RunLock(folder).acquire().release()
    stopping.set()
    for thread in probes:
        thread.join()


HOLDER = """
import pathlib, sys, time
from forgellm.runs.lock import take_lock
lock = take_lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_lock_ends_with_its_process(workspace: Workspace) -> None:
    folder = new_run(workspace).folder
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        assert is_locked(folder)
        named = holder(folder)
        assert named is not None and named.pid == process.pid and named.is_running()
        process.kill()
    assert not is_locked(folder)
    assert not named.is_running()


def test_adopting_something_else_than_the_lock_is_refused(workspace: Workspace) -> None:
    folder = new_run(workspace).folder
    RunLock(folder).acquire().release()
    with open(folder / "run.json") as other, pytest.raises(RunBusy):
        RunLock.adopt(folder, other.fileno())
    with pytest.raises(RunBusy):
        RunLock.adopt(folder, 10_000)


def test_later_stop_requests_only_shorten_the_grace_period(workspace: Workspace) -> None:
    run = new_run(workspace)
    assert not run.stop_requested() and run.stop_deadline() is None
    run.request_stop(grace_seconds=100)
    first = run.stop_deadline()
    run.request_stop(grace_seconds=500)
    assert run.stop_requested() and run.stop_deadline() == first
    run.request_stop(grace_seconds=0)
    assert (run.stop_deadline() or 0) < (first or 0)
    run.clear_stop_request()
    run.clear_stop_request()
    assert not run.stop_requested()


def test_every_active_phase_without_a_trainer_is_interrupted(workspace: Workspace) -> None:
    run = new_run(workspace)
    for phase in ACTIVE_PHASES:
        run.write_state(RunState(phase=phase))
        assert run.state().phase == "interrupted"


def test_the_lock_of_a_run_that_is_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound):
        RunLock(tmp_path / "gone").acquire()
