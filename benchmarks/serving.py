"""The web server over large workspaces: its start, its listings, a long run, and live viewers.

    python benchmarks/serving.py [start models runs dashboard checkpoints latency viewers] [--rounds 3]

Each part builds a workspace of its own in a temporary folder and asks a real web server, a process
of its own. The bound is a route that returns a constant behind the same guard, in a process that
imports FastAPI and nothing of ours besides. Viewers read and throw away what they are sent, as
their own cost is not the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rounds import Column, Figures, add_rounds, print_heading, print_table, take_turns

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

NUM_MODELS, NUM_RUNS, NUM_LINES, NUM_VIEWERS = 1_000, 10_000, 1_000_000, 100
NUM_CHECKPOINTS, NUM_CROWD = 200, 300
LIVE_LINES, LINES_PER_SECOND = 60, 4
PAIRS_A_ROUND = 20
SPELL_SECONDS, SETTLING_SECONDS = 4.0, 1.0
PATIENCE_SECONDS = 60.0
_KEPT_SECONDS = 3.0
_QUIET_CPU_SECONDS = 0.1
PARTS = ("start", "models", "runs", "dashboard", "checkpoints", "latency", "viewers")
_MS, _SPREAD = "{:.1f} ms", True
REQUESTS = [
    Column("first", "first", _MS, _SPREAD),
    Column("again", "again", _MS, _SPREAD),
    Column("changed", "after one changed", _MS, _SPREAD),
]


class Server:
    """A process that answers on a port of this machine, and one connection to it."""

    def __init__(self, command: list[str], probe: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self._asked_at = 0.0
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], stdout=subprocess.DEVNULL
        )
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port)
        while not self._answers(probe):
            if self.process.poll() is not None or time.perf_counter() > started + PATIENCE_SECONDS:
                self.close()
                raise SystemExit(f"{' '.join(command)} did not start")
            time.sleep(0.002)
        self.start_seconds = time.perf_counter() - started

    def _answers(self, probe: str) -> bool:
        try:
            self.get(probe)
        except (OSError, http.client.HTTPException):
            self.connection.close()
            return False
        return True

    def get(self, path: str) -> bytes:
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: str | None = None) -> bytes:
        if time.monotonic() - self._asked_at > _KEPT_SECONDS:
            self.connection.close()  # the server has, too
        self.connection.request(method, path, body, {"content-type": "application/json"})
        reply = self.connection.getresponse()
        text = reply.read()
        self._asked_at = time.monotonic()
        if reply.status != 200:
            raise RuntimeError(f"{path}: {reply.status} {text[:300]!r}")
        return text

    def milliseconds(self, path: str) -> float:
        started = time.perf_counter()
        self.get(path)
        return 1000 * (time.perf_counter() - started)

    def memory_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_until_quiet(self) -> None:
        before = -1.0
        while (now := self.cpu_seconds()) - before > _QUIET_CPU_SECONDS:
            before = now
            time.sleep(1)

    def close(self) -> None:
        self.connection.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_SECONDS)


@contextmanager
def served(workspace: Path | None) -> Iterator[Server]:
    """ForgeLLM in that workspace, or without one the bound."""
    if workspace is None:
        server = Server([sys.executable, __file__, "--bound"], "/constant")
    else:
        command = [sys.executable, "-m", "forgellm", "web", "--workspace", str(workspace)]
        server = Server(command, "/api/health")
    try:
        yield server
    finally:
        server.close()


def serve_bound(port: int) -> None:
    import uvicorn
    from fastapi import FastAPI

    from forgellm import envelope
    from forgellm.guard import Guard, GuardSettings

    app = FastAPI(default_response_class=envelope.ForgeJSONResponse)
    envelope.install(app)

    @app.get("/constant")
    def constant() -> dict[str, bool]:
        return {"success": True}

    uvicorn.run(Guard(app, GuardSettings()), port=port, log_config=None, access_log=False)


def asked(workspace: Path | None, path: str, change: Callable[[], None]) -> Figures:
    """A server's first request, one when it has long read all lists, and one after `change`, in
    milliseconds."""
    with served(workspace) as server:
        time.sleep(1.5)
        first = server.milliseconds(path)
        server.wait_until_quiet()
        server.get(path)  # after the pause, during which the processor did other things
        again = server.milliseconds(path)
        change()
        changed = server.milliseconds(path)
        return {
            "first": first,
            "again": again,
            "changed": changed,
            "memory": server.memory_mb(),
        }


# --- workspaces ---------------------------------------------------------------------------------


def build_models(root: Path) -> Path:
    from tiny_workspace import build_tiny_workspace

    tiny = build_tiny_workspace(root).base_models / "tiny"
    for number in range(1, NUM_MODELS):
        shutil.copytree(tiny, tiny.parent / f"model-{number:04d}", copy_function=os.link)
    changed = tiny.parent / "model-0007"
    shutil.rmtree(changed)
    shutil.copytree(tiny, changed)
    return changed


def new_run(root: Path, **fields: Any) -> Any:
    from forgellm.paths import Workspace
    from forgellm.runs.store import create_run
    from forgellm.schema.recipe import parse_recipe

    recipe = {"model_name": "base/tiny", "dataset": "notes", "max_iterations": 500}
    return create_run(Workspace(root), parse_recipe(recipe | fields).resolved(), 64)


def build_runs(root: Path) -> Path:
    """Copies of one run that has ended, with two checkpoints, each with its own name and id."""
    from forgellm.runs.lock import RunLock
    from forgellm.schema.run import RunState

    run = new_run(root)
    with RunLock(run.folder).acquire():
        write_lines(run.folder, 40)
        for iteration in (250, 500):
            keep_checkpoint(run.folder, iteration)
        run.write_state(RunState(phase="completed", iteration=500, training_seconds=90.0))
    record = (run.folder / "run.json").read_text()
    training_id = json.loads(record)["training_id"]
    for number in range(1, NUM_RUNS):
        folder = run.folder.parent / f"{run.name}_{number + 1}"
        shutil.copytree(run.folder, folder, copy_function=os.link, symlinks=True)
        for name in ("run.json", "state.json", "run.lock"):
            text = (run.folder / name).read_text()
            (folder / name).unlink()
            text = text.replace(training_id, f"{training_id}_{number + 1}")
            (folder / name).write_text(text.replace(f'"{run.name}"', f'"{folder.name}"'))
    return run.folder.parent / f"{run.name}_{NUM_RUNS // 2}"


def keep_checkpoint(run_folder: Path, iteration: int) -> None:
    from forgellm.runs.checkpoints import write_checkpoint

    def weights(folder: Path, stem: str) -> None:
        (folder / f"{stem}_adapters.safetensors").write_bytes(b"x" * 2000)

    write_checkpoint(
        run_folder, iteration, 2.0 - iteration / 1000, weights,
        lambda folder: (folder / "optimizer.safetensors").write_bytes(b"y"), {},
    )  # fmt: skip


def write_lines(folder: Path, count: int, first: int = 1) -> None:
    from forgellm.runs.metrics import MetricsWriter

    with MetricsWriter(folder) as writer:
        for iteration in range(first, first + count):
            loss = 4 / (1 + iteration / 5000) + (iteration * 7919 % 1000) / 5000
            writer.append(
                iteration=iteration, training_loss=loss, learning_rate=1e-4,
                tokens_per_second=900.0 + iteration % 7, memory_usage_gb=3.0, grad_norm=0.3,
                trained_tokens=1024 * iteration,
                validation_loss=loss + 0.1 if iteration % 500 == 0 else None,
            )  # fmt: skip


# --- parts --------------------------------------------------------------------------------------


def start(rounds: int) -> None:
    from tiny_workspace import build_tiny_workspace

    with tempfile.TemporaryDirectory() as folder:
        workspace = build_tiny_workspace(Path(folder)).root

        def measure(name: str) -> Figures:
            with served(workspace if name == "ForgeLLM" else None) as server:
                seconds = server.start_seconds
                return {"start": seconds, "memory": server.memory_mb()}

        found = take_turns(("ForgeLLM", "bound"), rounds, measure)
    columns = [
        Column("start", "spawned to first reply", "{:.2f} s", spread=True),
        Column("memory", "memory then", "{:.0f} MB"),
    ]
    print_table("web server", columns, found)


def models(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        changed = build_models(Path(folder))
        times = iter(range(1, 1000))

        def change() -> None:
            settings = json.loads((changed / "tokenizer_config.json").read_text())
            settings["chat_template"] = "x" * next(times)
            (changed / "tokenizer_config.json").write_text(json.dumps(settings))

        found = listing(Path(folder), {"/api/models": change}, rounds)
    print_table(
        f"{NUM_MODELS:,} models", [*REQUESTS, Column("memory", "memory then", "{:.0f} MB")], found
    )


def runs(rounds: int) -> None:
    from forgellm.paths import Workspace
    from forgellm.runs.store import Run
    from forgellm.schema.run import RunState

    with tempfile.TemporaryDirectory() as folder:
        run = Run(build_runs(Path(folder)), Workspace(Path(folder)))
        times = iter(range(1, 1000))

        def change() -> None:
            run.write_state(RunState(phase="stopped", iteration=next(times)))

        paths = ["/api/runs", "/api/runs?phase=completed&limit=500", "/api/training/status"]
        found = listing(Path(folder), dict.fromkeys(paths, change), rounds)
        found |= {"idle for 10 s": [idle(Path(folder)) for _ in range(rounds)]}
    columns = [*REQUESTS, Column("memory", "memory then", "{:.0f} MB")]
    columns.append(Column("cpu", "processor", "{:.1f} %"))
    print_table(f"{NUM_RUNS:,} runs", columns, found)


def idle(workspace: Path) -> Figures:
    with served(workspace) as server:
        time.sleep(5)
        before = server.cpu_seconds()
        time.sleep(10)
        return {"cpu": 10 * (server.cpu_seconds() - before)}


def listing(
    workspace: Path, paths: dict[str, Callable[[], None]], rounds: int
) -> dict[str, list[Figures]]:
    def measure(name: str) -> Figures:
        if name == "bound":
            return asked(None, "/constant", lambda: None)
        return asked(workspace, name, paths[name])

    return take_turns((*paths, "bound"), rounds, measure)


def dashboard(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder), max_iterations=10 * NUM_LINES)
        write_lines(run.folder, NUM_LINES)
        size = (run.folder / "metrics.jsonl").stat().st_size / 1e6
        lines = iter(range(NUM_LINES + 1, 2 * NUM_LINES))
        paths = {"/api/dashboard/data": lambda: write_lines(run.folder, 1, next(lines))}
        found = listing(Path(folder), paths, rounds)
    columns = [*REQUESTS, Column("memory", "memory then", "{:.0f} MB")]
    print_table(f"a run of {NUM_LINES:,} lines, {size:.0f} MB", columns, found)


def checkpoints(rounds: int) -> None:
    """Listed by the server, and ranked by a trainer as it does before it prunes."""
    from forgellm.runs.checkpoints import list_checkpoints, prune

    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder), max_checkpoints=1000)
        for number in range(1, NUM_CHECKPOINTS + 1):
            keep_checkpoint(run.folder, 10 * number)
        numbers = iter(range(NUM_CHECKPOINTS + 1, 2 * NUM_CHECKPOINTS))
        paths = {"/api/checkpoints": lambda: keep_checkpoint(run.folder, 10 * next(numbers))}
        found = listing(Path(folder), paths, rounds)
        started = time.perf_counter()
        prune(run.folder, keep=1000)
        milliseconds = 1000 * (time.perf_counter() - started)
        found["a trainer"] = [{"second": milliseconds}]
        num_kept = len(list_checkpoints(run.folder))
    print_table(f"{num_kept} checkpoints", REQUESTS, found)


def latency(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder))
        with served(Path(folder)) as server:
            found = {"trainer to client": [asyncio.run(listen(server, run)) for _ in range(rounds)]}
            audience = Audience(server.port, NUM_CROWD)
            name = f"beside {NUM_CROWD} viewers"
            found[name] = [asyncio.run(listen(server, run)) for _ in range(rounds)]
            audience.close()
    columns = [Column("median", "median", "{:.0f} ms"), Column("max", "max", "{:.0f} ms")]
    print_table(f"{LIVE_LINES} lines, {LINES_PER_SECOND} a second", columns, found)


async def listen(server: Server, run: Any) -> Figures:
    """Write lines as a trainer does, and hear of them as a page does."""
    import socketio

    from forgellm.paths import iso_utc
    from forgellm.runs.lock import RunLock
    from forgellm.runs.metrics import MetricsWriter, last_line
    from forgellm.schema.run import RunState

    heard: dict[int, float] = {}
    client = socketio.AsyncClient()
    client.on("training_update", lambda data: heard.setdefault(data["seq"], time.perf_counter()))
    with RunLock(run.folder).acquire():
        run.write_state(RunState(phase="training", heartbeat=iso_utc()))
        await client.connect(f"http://127.0.0.1:{server.port}", transports=["websocket"])
        await client.call("subscribe_training", {})
        written = {}
        with MetricsWriter(run.folder) as writer:
            last = last_line(run.folder)
            first = last.iteration + 1 if last else 1
            for iteration in range(first, first + LIVE_LINES):
                await asyncio.sleep((0.7 + 0.6 * (iteration * 7919 % 100) / 100) / LINES_PER_SECOND)
                line = writer.append(iteration=iteration, training_loss=1.0, learning_rate=1e-4)
                written[line.seq] = time.perf_counter()
        await asyncio.sleep(1)
    await client.disconnect()
    delays = [1000 * (heard[seq] - at) for seq, at in written.items() if seq in heard]
    if len(delays) < LIVE_LINES:
        raise SystemExit(f"only {len(delays)} of {LIVE_LINES} lines were heard of")
    return {"median": statistics.median(delays), "max": max(delays)}


def viewers(rounds: int) -> None:
    """Spells of one training, in turn alone and watched, as its pace changes by more from one
    minute to the next than what viewers take."""
    from tiny_workspace import build_tiny_workspace

    alone: list[Figures] = []
    watched: list[Figures] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        training(build_tiny_workspace(Path(folder)).root) as (server, run_folder),
    ):
        for number in range(PAIRS_A_ROUND * rounds):
            both = [(alone, 0), (watched, NUM_VIEWERS)]
            for found, count in both if number % 2 else reversed(both):
                found.append(spell(server, run_folder, count))
    columns = [
        Column("rate", "iterations/s", "{:.1f}", spread=True),
        Column("cpu", "server's processor", "{:.1f} %"),
        Column("updates", "updates to each", "{:.1f}/s"),
    ]
    print_table("a tiny training", columns, {"alone": alone, f"{NUM_VIEWERS} viewers": watched})
    slower = [100 * (1 - b["rate"] / a["rate"]) for a, b in zip(alone, watched, strict=True)]
    mean, error = statistics.mean(slower), statistics.stdev(slower) / len(slower) ** 0.5
    print(f"\nWatched slower by {mean:.1f} % ± {error:.1f} (standard error of {len(slower)} pairs)")


@contextmanager
def training(workspace: Path) -> Iterator[tuple[Server, Path]]:
    """A real run that reports at each step, and its folder."""
    recipe = {
        "model_name": "tiny", "dataset": "notes", "dtype": "float32", "batch_size": 8,
        "max_seq_length": 256, "max_iterations": 1_000_000, "save_every": 1_000_000,
        "eval_every": 1_000_000, "data_mixture_ratio": 1.0,
    }  # fmt: skip
    with served(workspace) as server:
        server.ask("POST", "/api/training/start", json.dumps(recipe))
        wait_for_iteration(server, 20)
        run_folder = json.loads(server.get("/api/dashboard/data"))["training_dir"]
        time.sleep(3)
        yield server, workspace / run_folder
        server.ask("POST", "/api/training/stop", "{}")
        while json.loads(server.get("/api/training/status"))["is_training"]:
            time.sleep(0.1)


def wait_for_iteration(server: Server, number: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        metrics = json.loads(server.get("/api/dashboard/realtime"))["current_metrics"]
        if (metrics["iteration"] or 0) >= number:
            return
        time.sleep(0.1)
    raise SystemExit("the training does not get on")


def spell(server: Server, run_folder: Path, num_viewers: int) -> Figures:
    """Some seconds of the training, watched by so many from a moment before."""
    audience = Audience(server.port, num_viewers)
    time.sleep(SETTLING_SECONDS)
    cpu, seen, began = server.cpu_seconds(), audience.num_updates, moment(run_folder)
    time.sleep(SPELL_SECONDS)
    ended = moment(run_folder)
    cpu, seen = server.cpu_seconds() - cpu, audience.num_updates - seen
    audience.close()
    return {
        "rate": (ended[1] - began[1]) / (ended[0] - began[0]),
        "cpu": 100 * cpu / SPELL_SECONDS,
        "updates": seen / SPELL_SECONDS / num_viewers if num_viewers else None,
    }


def moment(run_folder: Path) -> tuple[float, int]:
    """When the training came to its last iteration, in seconds, and which that is."""
    from forgellm.runs.metrics import last_line

    line = last_line(run_folder)
    assert line is not None
    return datetime.fromisoformat(line.timestamp).timestamp(), line.iteration


class Audience:
    """Viewers on WebSockets, each a subscriber of the current run, served by one thread.

    It is of the lowest priority, where a system has one for each thread: as a rule viewers have
    machines of their own.
    """

    def __init__(self, port: int, count: int) -> None:
        self.num_updates = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        if sys.platform == "linux":
            self._loop.call_soon_threadsafe(os.nice, 19)
        coming = [self._view(port) for _ in range(count)]
        futures = [asyncio.run_coroutine_threadsafe(viewer, self._loop) for viewer in coming]
        self._writers = [future.result(PATIENCE_SECONDS) for future in futures]

    async def _view(self, port: int) -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: localhost\r\n"
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_frame(b"40") + _frame(b'42["subscribe_training",{}]'))
        task = asyncio.get_running_loop().create_task(self._count(reader, writer))
        writer._task = task  # type: ignore[attr-defined]
        return writer

    async def _count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            self.num_updates += data.count(b'["training_update"')
            if data.endswith(b"\x81\x012"):  # Engine.IO asks whether someone is there
                writer.write(_frame(b"3"))

    def close(self) -> None:
        for writer in self._writers:
            self._loop.call_soon_threadsafe(writer.close)
        time.sleep(0.2)
        self._loop.call_soon_threadsafe(self._loop.stop)


def _frame(text: bytes) -> bytes:
    """A client's WebSocket frame; a mask of zeros leaves the text as it is."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--bound", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    add_rounds(parser)
    args = parser.parse_args()
    if args.bound:
        serve_bound(args.port)
        return
    print_heading(
        "Web server and stores", ["fastapi", "uvicorn", "python-socketio"], sys.executable
    )
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}")
    for part in args.parts or PARTS:
        globals()[part](args.rounds)


if __name__ == "__main__":
    main()
