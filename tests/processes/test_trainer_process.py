"""The trainer as the process it is: killed, stopped, starved of disk, resumed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from forgellm import supervisor
from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.lock import holder
from forgellm.runs.metrics import effective, read_lines
from forgellm.runs.store import Run, create_run
from tiny_workspace import build_tiny_workspace, tiny_recipe

LONG = 120.0
SETTINGS: dict[str, Any] = {
    "max_iterations": 60,
    "save_every": 5,
    "eval_every": 15,
    "grad_accum_steps": 2,
    "lora_dropout": 0.1,
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_tiny_workspace(tmp_path / "w")


def start(workspace: Workspace, **fields: Any) -> Run:
    recipe = tiny_recipe(**{**SETTINGS, **fields})
    return supervisor.start_training(workspace, recipe, max_seq_length=64)


def wait_until(condition: Callable[[], bool], run: Run) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, run.log_file.read_text()
        time.sleep(0.01)


def wait_for_end(run: Run) -> None:
    wait_until(lambda: not run.is_alive(), run)


def last_iteration(run: Run) -> int:
    lines, _ = read_lines(run.folder)
    return max((line.iteration for line in lines), default=-1)


def kill(run: Run) -> None:
    trainer = holder(run.folder)
    assert trainer is not None
    os.kill(trainer.pid, signal.SIGKILL)
    wait_for_end(run)


def final_weights(run: Run) -> dict[str, bytes]:
    file = checkpoints.find_checkpoint(run.folder, SETTINGS["max_iterations"]).weights
    return {name: value.tobytes() for name, value in safetensors.numpy.load_file(file).items()}


@pytest.mark.parametrize(
    "kills", [2, pytest.param(25, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])]
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    workspace: Workspace, kills: int
) -> None:
    whole = start(workspace)
    wait_for_end(whole)
    assert whole.state().phase == "completed", whole.log_file.read_text()
    expected = final_weights(whole)
    rng = random.Random(os.environ.get("FORGELLM_TEST_SEED", "kill"))
    run = start(workspace)
    wait_until(lambda: bool(checkpoints.list_checkpoints(run.folder)), run)
    for _ in range(kills):
        target = last_iteration(run) + rng.randrange(0, 12)
        wait_until(lambda target=target: last_iteration(run) >= target or not run.is_alive(), run)
        time.sleep(rng.uniform(0, 0.1))
        if not run.is_alive():
            break
        kill(run)
        assert run.state().phase in ("interrupted", "completed")
        if run.state().phase == "completed":
            break
        supervisor.resume_training(workspace, run)
        wait_until(lambda: run.state().phase == "training" or not run.is_alive(), run)
    wait_for_end(run)
    assert run.state().phase == "completed", run.log_file.read_text()
    assert final_weights(run) == expected
    curves = [
        [
            (x.iteration, x.training_loss, x.trained_tokens)
            for x in effective(read_lines(r.folder)[0])
        ]
        for r in (whole, run)
    ]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("how", ["request", "SIGTERM", "SIGINT"])
def test_a_stop_request_keeps_a_checkpoint_and_can_be_resumed(
    workspace: Workspace, how: str
) -> None:
    run = start(workspace, max_iterations=100_000, save_every=1000, data_mixture_ratio=1.0)
    wait_until(lambda: last_iteration(run) >= 3, run)
    if how == "request":
        supervisor.stop_training(workspace, run)
    else:
        trainer = holder(run.folder)
        assert trainer is not None
        os.kill(trainer.pid, getattr(signal, how))
    wait_for_end(run)
    state = run.state()
    assert state.phase == "stopped"
    checkpoint, damaged = checkpoints.newest_verified(run.folder)
    assert checkpoint is not None and checkpoint.iteration == state.iteration and not damaged
    if how != "request":
        return  # what is kept is the same
    supervisor.resume_training(workspace, run)
    wait_until(lambda: last_iteration(run) > state.iteration, run)
    supervisor.stop_training(workspace, run)
    wait_for_end(run)


def test_its_log_holds_no_webhooks_address(workspace: Workspace) -> None:
    events: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            events.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/hook?key=s3cret"
        recipe = tiny_recipe(webhook_url=url)
        run = create_run(workspace, recipe, 64)
        trainer = subprocess.run(
            [sys.executable, "-m", "forgellm.training", str(run.folder)],
            cwd=workspace.root,
            capture_output=True,
            text=True,
        )
        server.shutdown()
        thread.join()
    assert (trainer.returncode, len(events)) == (0, 1), trainer.stdout
    assert "s3cret" not in trainer.stdout + trainer.stderr


def test_it_outlives_the_process_that_started_it(workspace: Workspace) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from tiny_workspace import tiny_recipe\n"
        "from forgellm import supervisor\n"
        "from forgellm.paths import Workspace\n"
        "run = supervisor.start_training(Workspace(Path(sys.argv[1])),"
        " tiny_recipe(max_iterations=100000, data_mixture_ratio=1.0), max_seq_length=64)\n"
        "print(run.folder)\n"
    )
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(workspace.root), str(tests)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    run = Run(Path(done.stdout.strip()), workspace)
    try:
        wait_until(lambda: last_iteration(run) >= 5, run)
        assert run.is_alive()
    finally:
        supervisor.stop_training(workspace, run)
        wait_for_end(run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_was_saved(
    workspace: Workspace, small_disk: Path
) -> None:
    target = workspace.models / "cpt"
    target.mkdir()
    subprocess.run(["mount", "--bind", str(small_disk), str(target)], check=True)
    try:
        run = start(workspace, max_iterations=100_000, data_mixture_ratio=1.0, lora_rank=8)
        wait_until(lambda: len(checkpoints.list_checkpoints(run.folder)) >= 2, run)
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb", 0) as filler:
            while True:
                filler.write(b"x" * 4096)
        wait_for_end(run)
        state = run.state()
        assert state.phase == "failed"
        assert state.error is not None and state.error["error_code"] == "DISK_FULL"
        checkpoint, damaged = checkpoints.newest_verified(run.folder)
        assert checkpoint is not None and not damaged
        (small_disk / "filler").unlink(missing_ok=True)
        supervisor.resume_training(workspace, run)
        wait_until(lambda: last_iteration(run) > checkpoint.iteration + 5, run)
        supervisor.stop_training(workspace, run)
        wait_for_end(run)
        assert run.state().phase == "stopped"
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)
