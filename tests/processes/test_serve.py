"""The servers as the user starts them: real commands, real processes, a real training run."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from forgellm import supervisor
from forgellm.paths import Workspace
from forgellm.runs.store import active_run
from forgellm.supervisor import stop_training
from forgellm.training.session import Session
from serving import PATIENCE_SECONDS, eventually
from spec_lines import lines_of_the_spec, needs_spec
from tiny_model import build_tiny_model
from tiny_tokenizer import TRAINING_TEXT, build_tiny_tokenizer
from tiny_workspace import tiny_recipe

Start = Callable[..., "Server"]


class Server:
    """A `forgellm` command that serves; `url` is what it printed."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "forgellm", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        name = "Model server: " if arguments[0] == "server" else "ForgeLLM: "
        eventually(lambda: self._line(name) or self.process.poll() is not None)
        self.url = (self._line(name) or "").removeprefix(name)
        assert self.url, "".join(self.lines)
        self.client = httpx2.Client(base_url=self.url.split("?")[0], timeout=PATIENCE_SECONDS)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def _line(self, start: str) -> str | None:
        return next((line for line in self.lines if line.startswith(start)), None)

    def end(self, with_signal: signal.Signals = signal.SIGINT) -> int:
        self.client.close()
        self.process.send_signal(with_signal)
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def get(self, path: str) -> Any:
        return self.client.get(path).json()

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self.client.post(path, json=body).json()

    def model_server(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[Server] = []

    def begin(*arguments: str) -> Server:
        servers.append(Server(tmp_path, *arguments))
        return servers[-1]

    yield begin
    for server in servers:
        if server.process.poll() is None:
            server.end()


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path)
    folder = build_tiny_tokenizer(workspace.base_models / "tiny")
    build_tiny_model(folder, vocab_size=400)
    dataset = workspace.datasets / "mill"
    dataset.mkdir(parents=True)
    for number in range(12):
        (dataset / f"{number}.md").write_text(f"Page {number}.\n{TRAINING_TEXT}")
    yield workspace
    if active_run(workspace):
        stop_training(workspace)
        eventually(lambda: active_run(workspace) is None)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_web_server_starts_alone_and_ends_on_interrupt(start: Start) -> None:
    web = start("web", "--port", "0")
    assert web.get("/api/health")["components"]["web_server"] == "running"
    assert web.end() == 0
    assert web.lines == [f"ForgeLLM: {web.url}"]


def test_model_server_loads_what_it_is_told(start: Start, workspace: Workspace) -> None:
    server = start("server", "--port", "0", "--model", str(workspace.base_models / "tiny"))
    answer = server.post("/api/model/generate", {"prompt": "The mill", "max_tokens": 3})
    assert answer["success"] is True
    assert server.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("command", "flag"),
    [("web", "--port"), ("server", "--port"), ("start", "--web-port"), ("start", "--server-port")],
)
def test_taken_port_is_one_line_and_exit_code_3(command: str, flag: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = [command, flag, str(port)]
        if command == "start":
            other = "--web-port" if flag == "--server-port" else "--server-port"
            arguments += [other, str(free_port())]
        done = subprocess.run(
            [sys.executable, "-m", "forgellm", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
    assert done.returncode == 3 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and flag in done.stderr and str(port) in done.stderr


def test_open_to_other_machines_means_a_token(start: Start) -> None:
    web = start("web", "--port", "0", "--host", "0.0.0.0")
    address, _, token = web.url.partition("/?token=")
    if address.startswith("http://127.") or len(token) < 40:
        pytest.skip("this machine has no address besides the loopback")
    assert httpx2.get(address + "/api/health").status_code == 401
    with httpx2.Client(follow_redirects=True) as browser:
        page = browser.get(web.url)
        assert (page.status_code, str(page.url)) == (200, address + "/")
        assert browser.get(address + "/api/health").status_code == 200


def test_model_server_that_dies_is_started_again(start: Start) -> None:
    both = start("start", "--web-port", "0", "--server-port", str(free_port()))
    eventually(lambda: both.get("/api/health")["components"]["model_server"] == "running")
    child = both.model_server()
    child.kill()
    eventually(lambda: both.get("/api/health")["components"]["model_server"] == "stopped")
    eventually(lambda: both.get("/api/health")["components"]["model_server"] == "running")
    again = both.model_server()
    assert again.pid != child.pid
    assert both.end() == 0
    assert not again.is_running()


def test_model_server_does_not_outlive_a_killed_parent(start: Start) -> None:
    both = start("start", "--web-port", "0", "--server-port", str(free_port()))
    eventually(lambda: both.get("/api/health")["components"]["model_server"] == "running")
    child = both.model_server()
    both.end(signal.SIGKILL)
    eventually(lambda: not child.is_running())


@needs_spec
def test_every_server_line_of_the_spec_runs(start: Start, workspace: Workspace) -> None:
    """With free ports and our model; what each starts answers."""
    run, lock = supervisor.claim_new_run(
        workspace, tiny_recipe(dataset="mill", allow_overlap=True), max_seq_length=64
    )
    with lock:
        Session().train(run)
    lines = [line for line in lines_of_the_spec() if line[0] in ("start", "server", "web")]
    assert [line[0] for line in lines] == ["start", "server", "web"]
    for line in lines:
        names = {"MODEL": "tiny", "ADAPTER": run.output_dir}
        names |= {port: str(free_port()) for port in ("5001", "5002")}
        server = start(*(names.get(word, word) for word in line))
        token = server.url.partition("?token=")[2]
        headers = {"authorization": f"Bearer {token}"} if token else {}
        assert bool(token) == ("0.0.0.0" in line)
        assert server.client.get("/api/health", headers=headers).json()["success"] is True
        if line[0] == "server":
            eventually(lambda server=server: server.get("/api/model/status")["loaded"])
            assert server.get("/api/model/status")["adapter_path"] == run.output_dir
        assert server.end() == 0


def test_training_outlives_the_servers_and_its_best_checkpoint_answers(
    start: Start, workspace: Workspace
) -> None:
    """The first hour of a user: train, lose the server, come back, stop, chat."""
    ports = ("--web-port", "0", "--server-port", str(free_port()))
    recipe = {
        "allow_overlap": True,  # the pages are alike
        "model_name": "tiny", "dataset": "mill", "max_iterations": 1_000_000, "batch_size": 1,
        "max_seq_length": 64, "save_every": 5, "data_mixture_ratio": 1.0, "val_batches": 1,
    }  # fmt: skip
    first = start("start", *ports)
    begun = first.post("/api/training/start", recipe)
    assert begun["success"] is True, begun
    assert set(begun) >= {"message", "training_id", "output_dir", "warnings"}
    eventually(lambda: (first.get("/api/training/status")["current_iteration"] or 0) >= 5)
    assert first.post("/api/training/start", recipe)["error_code"] == "TRAINING_ALREADY_RUNNING"
    first.end(signal.SIGKILL)

    second = start("start", *ports)
    found = second.get("/api/training/status")
    assert (found["is_training"], found["training_id"]) == (True, begun["training_id"])
    before = found["current_iteration"]
    eventually(lambda: second.get("/api/training/status")["current_iteration"] > before + 5)
    assert second.get("/api/training/status")["current_loss"] > 0
    assert second.post("/api/training/stop")["message"] == "Training stopped successfully"
    found = second.get("/api/training/status")
    assert (found["is_training"], found["phase"]) == (False, "stopped")

    eventually(lambda: second.get("/api/health")["components"]["model_server"] == "running")
    loaded = second.post(
        "/api/model/load", {"model_name": "tiny", "adapter_path": begun["output_dir"]}
    )
    assert loaded["success"] is True, loaded
    ask = {"prompt": "What is the mill for?", "max_tokens": 12, "temperature": 0}
    whole = second.post("/api/model/generate", ask)
    assert whole["success"] is True, whole
    with second.client.stream(
        "POST", "/api/model/generate", json=ask | {"streaming": True}
    ) as reply:
        *_, done = [json.loads(line[6:]) for line in reply.iter_lines() if line]
    assert (done["type"], done["response"]) == ("done", whole["response"])
    assert second.get("/api/model/status")["adapter_path"] == begun["output_dir"]
    resumed = second.post("/api/training/resume", {"training_id": begun["training_id"]})
    assert resumed["success"] is True, resumed
    assert second.end() == 0
    assert any("Training goes on" in line for line in second.lines)
    assert active_run(workspace) is not None
