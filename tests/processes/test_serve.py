"""The servers as the user starts them: real commands, real processes, a real training run."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from forgellm import supervisor
from forgellm.cli.main import main
from forgellm.paths import Workspace
from forgellm.runs.store import active_run
from forgellm.supervisor import stop_training
from forgellm.training.session import Session
from odd_server import odd_server, stream_reply
from served_command import Server
from serving import PATIENCE_SECONDS, eventually
from spec_lines import lines_of_the_spec, needs_spec
from tiny_model import build_tiny_model
from tiny_tokenizer import TRAINING_TEXT, build_tiny_tokenizer
from tiny_workspace import tiny_recipe

Start = Callable[..., Server]


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


def test_answers_from_an_upstream_reach_the_page(start: Start) -> None:
    chunk = b'data: {"choices": [{"delta": {"content": "Yes"}, "finish_reason": "stop"}]}\n\n'
    with odd_server() as upstream:
        upstream.say = lambda handler: stream_reply(handler, chunk, b"data: [DONE]\n\n")
        ports = ("--web-port", "0", "--server-port", str(free_port()))
        both = start("start", *ports, "--upstream", upstream.url)
        eventually(lambda: both.get("/api/health")["components"]["model_server"] == "running")
        assert both.get("/api/model/status")["upstream_models"] == ["odd"]
        assert both.post("/api/model/generate", {"prompt": "Turns it?"})["response"] == "Yes"
        assert both.end() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("server", "--upstream", "gpu:8000"), "--upstream must be an address"),
        (("start", "--upstream", "http://localhost:5001"), "own address"),
        (("server", "--upstream", "http://gpu", "--model", "tiny"), "without --model"),
        (("server", "--backend", "vllm"), "needs --model"),
        (("server", "--model", "tiny", "--adapter", "a", "--adapter", "b"), "--backend vllm"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err.splitlines()[0]


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
