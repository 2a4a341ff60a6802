"""Live events of a real training run, across the death of the web server, and to many clients."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgellm.paths import Workspace
from forgellm.runs.lock import RunLock
from forgellm.runs.metrics import MetricsWriter, read_lines
from forgellm.runs.store import active_run, create_run, find_run
from forgellm.schema.run import RunState
from forgellm.supervisor import stop_training
from serving import eventually
from socket_listener import Listener, async_eventually, listening
from tiny_workspace import build_tiny_workspace, tiny_recipe
from web_process import WebServer


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = build_tiny_workspace(tmp_path)
    yield workspace
    if active_run(workspace):
        stop_training(workspace)
        eventually(lambda: active_run(workspace) is None)


@pytest.fixture
def web(workspace: Workspace) -> Iterator[WebServer]:
    server = WebServer(workspace)
    yield server
    if server.process.poll() is None:
        server.end()


def test_nothing_is_missed_across_a_kill_of_the_web_server(
    workspace: Workspace, web: WebServer
) -> None:
    async def check() -> None:
        async with await listening(web.url) as listener:
            begun = await asyncio.to_thread(web.begin_training, max_iterations=300)
            training_id = begun["training_id"]

            async def again() -> None:
                since = max(listener.seqs(), default=0)
                data = {"training_id": training_id, "since_seq": since}
                await listener.client.emit("subscribe_training", data)

            await listener.subscribe(training_id=training_id)
            listener.client.on("connect", again)
            await async_eventually(lambda: max(listener.seqs(), default=0) > 0)
            web.end(signal.SIGKILL)
            await async_eventually(lambda: not listener.client.connected)
            before = len(listener.seqs())
            seen = max(listener.seqs())
            folder = find_run(workspace, training_id).folder
            await async_eventually(lambda: read_lines(folder)[0][-1].seq > seen + 20)
            written = read_lines(folder)[0][-1].seq
            await asyncio.to_thread(web.start)
            done = await listener.first("training_complete")
            assert (done["stopped"], done["final_iteration"]) == (False, 300)
            assert done["output_dir"] == begun["output_dir"] and done["best_checkpoints"]
            # An update that tells of a new phase repeats the number of the line before it.
            missed = list(dict.fromkeys(listener.seqs()[before:]))
            assert missed == sorted(missed)
            assert missed[: written - seen] == list(range(seen + 1, written + 1))
            assert missed[-1] == read_lines(folder)[0][-1].seq

    asyncio.run(check())


def test_run_of_the_command_line_is_followed_and_its_divergence_told(
    workspace: Workspace, web: WebServer
) -> None:
    arguments = [
        "--model", "tiny", "--dataset", "notes", "--dtype", "float32", "--max-iterations", "200",
        "--batch-size", "2", "--max-seq-length", "64", "--learning-rate", "10",
        "--weight-decay", "1", "--lr-schedule", "constant", "--warmup-steps", "0",
    ]  # fmt: skip  # rate times decay is 10: the weights grow ninefold with each update

    async def check() -> None:
        async with await listening(web.url) as listener:
            assert (await listener.subscribe())["training_id"] is None
            command = [sys.executable, "-m", "forgellm", "train", *arguments]
            trainer = await asyncio.create_subprocess_exec(
                *command,
                cwd=workspace.root,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output, _ = await trainer.communicate()
            assert trainer.returncode == 1, output.decode()
            failed = await listener.first("training_error")
            assert failed["error_code"] == "NON_FINITE_LOSS", failed
            assert "learning_rate" in failed["suggestion"]
            assert failed["iteration"] > 0

    asyncio.run(check())


def test_every_client_hears_the_end(workspace: Workspace, web: WebServer) -> None:
    async def check() -> None:
        run = create_run(workspace, tiny_recipe(), 64)
        with RunLock(run.folder).acquire(), MetricsWriter(run.folder) as metrics:
            run.write_state(RunState(phase="training"))
            listeners = await asyncio.gather(*(listening(web.url) for _ in range(50)))
            await asyncio.gather(*(listener.subscribe() for listener in listeners))
            for iteration in range(1, 13):
                metrics.append(iteration=iteration, training_loss=2.0, learning_rate=1e-3)
            run.write_state(RunState(phase="completed", iteration=12))
        for listener in listeners:
            done = await listener.first("training_complete")
            assert (done["final_iteration"], listener.seqs()[-1]) == (12, 12)
        await asyncio.gather(*(listener.client.disconnect() for listener in listeners))

    asyncio.run(check())


def test_stop_of_the_server_does_not_wait_for_its_clients(
    workspace: Workspace, web: WebServer
) -> None:
    async def check() -> None:
        socket_client = Listener(reconnection=False)
        await socket_client.client.connect(web.url, transports=["websocket"])
        polling = Listener(reconnection=False)
        await polling.client.connect(web.url, transports=["polling"])
        await asyncio.to_thread(web.end, signal.SIGTERM)
        await async_eventually(lambda: not socket_client.client.connected)
        await polling.client.disconnect()

    asyncio.run(check())


@pytest.mark.slow
def test_three_hundred_clients_lose_nothing_at_five_updates_a_second(
    workspace: Workspace, web: WebServer
) -> None:
    num_clients, num_updates = 300, 300

    async def check() -> None:
        run = create_run(workspace, tiny_recipe(max_iterations=num_updates), 64)
        with RunLock(run.folder).acquire(), MetricsWriter(run.folder) as metrics:
            run.write_state(RunState(phase="training"))
            metrics.append(iteration=0, validation_loss=3.0)
            listeners: list[Listener] = []
            for _ in range(num_clients // 20):
                listeners += await asyncio.gather(*(
                    listening(web.url, transports=["websocket"]) for _ in range(20)
                ))  # fmt: skip
            await asyncio.gather(*(listener.subscribe() for listener in listeners))
            started = time.monotonic()
            for iteration in range(1, num_updates + 1):
                metrics.append(iteration=iteration, training_loss=2.0, learning_rate=1e-3)
                await asyncio.sleep(max(0.0, started + iteration / 5 - time.monotonic()))
            run.write_state(RunState(phase="completed", iteration=num_updates))
        wanted = list(range(1, num_updates + 2))
        for listener in listeners:
            await listener.first("training_complete")
            assert listener.seqs() == wanted
        await asyncio.gather(*(listener.client.disconnect() for listener in listeners))

    asyncio.run(check())
