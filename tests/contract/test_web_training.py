"""The web server's training, health and model routes, on real run folders and a real model server."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from forgellm.cli.main import main
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app as create_model_server
from forgellm.model_server.shelf import Shelf
from forgellm.paths import Workspace
from forgellm.runs.lock import RunLock
from forgellm.runs.metrics import METRICS_NAME, MetricsWriter
from forgellm.runs.store import Run, create_run
from forgellm.schema.recipe import parse_recipe
from forgellm.schema.run import ProcessFigures, RunState
from forgellm.training.plan import plan_run
from forgellm.web.app import create_app
from forgellm.web.run_feed import RunFeed
from forgellm.web.run_status import RunStatus
from serving import eventually, served
from tiny_model import build_tiny_model
from tiny_tokenizer import build_tiny_tokenizer

RECIPE = {"model_name": "tiny", "dataset": "my_domain", "max_iterations": 500}
STATUS_FIELDS = {
    "success", "is_training", "training_type", "current_iteration", "max_iterations",
    "progress_percentage", "current_loss", "learning_rate", "tokens_per_second",
    "memory_usage_gb", "eta_minutes", "output_dir",
}  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_tiny_tokenizer(tmp_path_factory.mktemp("models") / "tiny")
    return build_tiny_model(folder, vocab_size=400)


@pytest.fixture
def workspace(tmp_path: Path, model_folder: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    workspace.base_models.mkdir(parents=True)
    target = workspace.base_models / "tiny"
    target.mkdir()
    for file in model_folder.iterdir():
        (target / file.name).hardlink_to(file)
    (workspace.datasets / "my_domain").mkdir(parents=True)
    (workspace.datasets / "my_domain" / "a.md").write_text("The mill. " * 200)
    return workspace


@pytest.fixture
def web(workspace: Workspace) -> Iterator[TestClient]:
    yield client_of(workspace, "http://127.0.0.1:1")


def client_of(workspace: Workspace, model_server_url: str) -> TestClient:
    app = create_app(workspace, GuardSettings(), model_server_url)
    return TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 40000))


def make_run(workspace: Workspace, **state: Any) -> Run:
    run = create_run(workspace, parse_recipe(RECIPE), 128)
    run.write_state(RunState(**state))
    return run


def failed(reply: Any, status_code: int, code: str) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()
    assert set(found) == {"success", "error", "error_code", "details", "suggestion"}
    assert (reply.status_code, found["error_code"]) == (status_code, code)
    return found


def test_status_before_any_training_is_all_nulls(web: TestClient) -> None:
    found = web.get("/api/training/status").json()
    assert found.keys() >= STATUS_FIELDS
    assert (found.pop("success"), found.pop("is_training")) == (True, False)
    assert (found.pop("warnings"), found.pop("processes")) == ([], [])
    assert set(found.values()) == {None}


def test_status_of_the_run_that_trains(web: TestClient, workspace: Workspace) -> None:
    run = make_run(workspace, phase="training", iteration=150, eta_minutes=45)
    with RunLock(run.folder).acquire(), MetricsWriter(run.folder) as metrics:
        metrics.append(iteration=100, validation_loss=2.5)
        metrics.append(
            iteration=150,
            training_loss=2.345,
            learning_rate=4e-05,
            tokens_per_second=234.5,
            memory_usage_gb=12.3,
        )
        found = web.get("/api/training/status").json()
    assert {name: found[name] for name in STATUS_FIELDS} == {
        "success": True,
        "is_training": True,
        "training_type": "cpt",
        "current_iteration": 150,
        "max_iterations": 500,
        "progress_percentage": 30.0,
        "current_loss": 2.345,
        "learning_rate": 4e-05,
        "tokens_per_second": 234.5,
        "memory_usage_gb": 12.3,
        "eta_minutes": 45,
        "output_dir": run.output_dir,
    }
    assert (found["phase"], found["validation_loss"]) == ("training", 2.5)
    assert found["training_id"] == run.record().training_id


def test_what_each_of_several_processes_does_is_in_the_status_in_updates_and_in_the_terminal(
    web: TestClient, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [
        ProcessFigures(rank=0, host="here", memory_usage_gb=1.25, tokens_per_second=500),
        ProcessFigures(rank=1, host="there", memory_usage_gb=2.5, tokens_per_second=400),
    ]
    run = make_run(workspace, phase="training", iteration=2, processes=figures)
    with RunLock(run.folder).acquire(), MetricsWriter(run.folder) as metrics:
        metrics.append(iteration=2, training_loss=2.3, learning_rate=4e-5)
        found = web.get("/api/training/status").json()["processes"]
        assert main(["runs", "--workspace", str(workspace.root), "show"]) == 0
        assert RunFeed(run).latest.model_dump()["processes"] == found
    assert found == [item.model_dump() for item in figures]
    assert "Process 1:       there, 2.50 GB, 400 tok/s" in capsys.readouterr().out


def test_status_afterwards_keeps_the_final_figures(web: TestClient, workspace: Workspace) -> None:
    run = make_run(workspace, phase="completed", iteration=500, eta_minutes=0)
    with MetricsWriter(run.folder) as metrics:
        metrics.append(iteration=500, training_loss=1.5, learning_rate=1e-5)
    found = web.get("/api/training/status").json()
    assert (found["is_training"], found["phase"]) == (False, "completed")
    assert (found["current_loss"], found["progress_percentage"]) == (1.5, 100)


def test_dead_trainer_shows_as_interrupted(web: TestClient, workspace: Workspace) -> None:
    make_run(workspace, phase="training", iteration=3, eta_minutes=9)
    found = web.get("/api/training/status").json()
    assert (found["is_training"], found["phase"], found["eta_minutes"]) == (
        False,
        "interrupted",
        None,
    )


def test_status_reads_only_what_was_added(workspace: Workspace) -> None:
    run, status = make_run(workspace), RunStatus(workspace)
    with MetricsWriter(run.folder) as metrics:
        metrics.append(iteration=1, training_loss=3.0, learning_rate=1e-5, tokens_per_second=9.0)
        assert status.status()["current_loss"] == 3.0
        log = run.folder / METRICS_NAME
        with open(log, "r+b") as file:  # what was read once is not read again
            file.write(b"x" * (log.stat().st_size - 1))
        metrics.append(iteration=2, validation_loss=2.0)
        found = status.status()
    assert (found["current_loss"], found["tokens_per_second"], found["validation_loss"]) == (
        3,
        9,
        2,
    )


def test_loss_that_is_not_finite_shows_as_null(web: TestClient, workspace: Workspace) -> None:
    run = make_run(workspace, phase="failed")
    with MetricsWriter(run.folder) as metrics:
        metrics.append(iteration=1, training_loss=3.0, learning_rate=1e-5)
        metrics.append(iteration=2, training_loss=float("nan"), learning_rate=1e-5)
    assert web.get("/api/training/status").json()["current_loss"] is None


@pytest.mark.parametrize(
    ("change", "status_code", "code", "named"),
    [
        ({"model_name": "no/such"}, 404, "MODEL_NOT_FOUND", "no/such"),
        ({"dataset": "nothing"}, 404, "DATASET_NOT_FOUND", "nothing"),
        ({"dataset": "../models"}, 404, "DATASET_NOT_FOUND", "models"),
        ({"replay_dataset": "nothing"}, 404, "DATASET_NOT_FOUND", "nothing"),
        ({"training_type": "ift"}, 400, "DATASET_UNUSABLE", "No conversation"),
        ({"max_iterations": 0}, 400, "INVALID_CONFIG", "max_iterations"),
        ({"max_iterationz": 1}, 400, "INVALID_CONFIG", "max_iterationz"),
        ({"warmup_steps": 501}, 400, "INVALID_CONFIG", "warmup_steps"),
    ],
)
def test_start_that_cannot_work_is_refused_at_once(
    change: dict[str, Any], status_code: int, code: str, named: str,
    web: TestClient, workspace: Workspace,
) -> None:  # fmt: skip
    reply = web.post("/api/training/start", json=RECIPE | change)
    assert named in str(failed(reply, status_code, code))
    assert not workspace.runs("cpt").exists()


def test_second_start_is_a_conflict_that_names_the_first(
    web: TestClient, workspace: Workspace
) -> None:
    run = make_run(workspace, phase="training")
    with RunLock(run.folder).acquire():
        found = failed(
            web.post("/api/training/start", json=RECIPE), 409, "TRAINING_ALREADY_RUNNING"
        )
    assert found["details"]["training_id"] == run.record().training_id


@pytest.mark.parametrize(
    ("requested", "length", "num_warnings"), [(None, 512, 0), (128, 128, 0), (4096, 512, 1)]
)
def test_sequence_length_is_capped_by_the_model(
    requested: int | None, length: int, num_warnings: int, workspace: Workspace
) -> None:
    recipe = parse_recipe(RECIPE | {"max_seq_length": requested, "data_mixture_ratio": 1.0})
    plan = plan_run(recipe, workspace)
    assert (plan.max_seq_length, len(plan.warnings)) == (length, num_warnings)


def test_too_little_replay_text_is_a_warning_that_names_the_field(workspace: Workspace) -> None:
    recipe = parse_recipe(RECIPE | {"data_mixture_ratio": 0.5, "max_iterations": 100_000})
    (warning,) = plan_run(recipe, workspace).warnings
    assert "replay_dataset" in warning
    no_replay = recipe.model_copy(update={"data_mixture_ratio": 1.0})
    assert plan_run(no_replay, workspace).warnings == []


def test_stop_without_training_is_a_conflict(web: TestClient) -> None:
    failed(web.post("/api/training/stop"), 409, "NO_ACTIVE_TRAINING")


def test_stop_answers_when_the_trainer_has_ended(web: TestClient, workspace: Workspace) -> None:
    run = make_run(workspace, phase="training")
    lock = RunLock(run.folder).acquire()

    def train_until_told() -> None:
        eventually(run.stop_requested)
        run.write_state(RunState(phase="stopped"))
        lock.release()

    with ThreadPoolExecutor(1) as pool:
        trainer = pool.submit(train_until_told)
        reply = web.post("/api/training/stop").json()
        trainer.result()
    assert (reply["success"], reply["message"]) == (True, "Training stopped successfully")
    assert not run.is_alive()


def test_resume_needs_a_run_with_a_checkpoint(web: TestClient, workspace: Workspace) -> None:
    failed(web.post("/api/training/resume", json={}), 400, "INVALID_REQUEST")
    failed(web.post("/api/training/resume", json={"training_id": "none"}), 404, "RUN_NOT_FOUND")
    failed(web.post("/api/training/resume", json={"output_dir": "../.."}), 404, "RUN_NOT_FOUND")
    run = make_run(workspace, phase="stopped")
    body = {"training_id": run.record().training_id}
    failed(web.post("/api/training/resume", json=body), 404, "CHECKPOINT_NOT_FOUND")


def test_health_has_the_fields_of_the_spec_and_real_figures(web: TestClient) -> None:
    found = web.get("/api/health").json()
    assert found["components"] == {
        "web_server": "running",
        "model_server": "stopped",
        "training_pipeline": "idle",
    }
    system = found["system_info"]
    assert set(system) == {
        "memory_total_gb", "memory_available_gb", "disk_free_gb", "python_version", "mlx_version",
        "num_cores", "gpus",
    }  # fmt: skip
    assert system["memory_total_gb"] > system["memory_available_gb"] > 0 < system["disk_free_gb"]
    assert system["python_version"] == sys.version.split()[0]


@pytest.mark.parametrize("address", ["/", "/train", "/runs", "/runs/a/b", "/chat/0", "/data/x"])
def test_every_view_has_an_address_and_takes_scripts_from_here_alone(
    web: TestClient, address: str
) -> None:
    page = web.get(address)
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    (inline,) = re.findall(r"<script type=\"importmap\">(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in policy
    assert "require-trusted-types-for 'script'" in policy and "unsafe" not in policy
    for script in re.findall(r"(?:src|href)=\"(/static/[^\"]+)\"", page.text):
        assert web.get(script).status_code == 200, script
    for module in json.loads(inline)["imports"].values():
        assert web.get(module).status_code == 200, module
    assert web.get("/nowhere").status_code == 404


def test_the_apis_page_names_every_route(web: TestClient) -> None:
    docs = web.get("/docs").text
    assert "POST /api/training/start" in docs and "http" not in docs.replace("http://localhost", "")
    paths = web.get("/openapi.json").json()["paths"]
    body = paths["/api/training/start"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["properties"]["max_iterations"]["minimum"] == 1


def test_model_server_down_is_unavailable(web: TestClient) -> None:
    for reply in (
        web.get("/api/model/status"),
        web.post("/api/model/generate", json={"prompt": "x", "streaming": True}),
    ):
        failed(reply, 503, "MODEL_SERVER_UNAVAILABLE")


def test_model_routes_are_passed_on(workspace: Workspace) -> None:
    with (
        served(create_model_server(Shelf(workspace), GuardSettings())) as model_server,
        client_of(workspace, str(model_server.base_url)) as web,
    ):
        assert web.get("/api/health").json()["components"]["model_server"] == "running"
        failed(web.post("/api/model/generate", json={"prompt": "x"}), 409, "MODEL_NOT_LOADED")
        failed(web.post("/api/model/load", json={"model_name": 5}), 400, "INVALID_REQUEST")
        failed(web.get("/api/model/none"), 404, "NOT_FOUND")
        web.post("/api/model/load", json={"model_name": "tiny"})
        ask = {"prompt": "What is the mill?", "max_tokens": 8, "temperature": 0}
        whole = web.post("/api/model/generate", json=ask).json()
        streamed = web.post("/api/model/generate", json=ask | {"streaming": True})
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert whole["response"] in streamed.text or '"type":"done"' in streamed.text
        assert web.get("/api/model/status").json()["loaded"] is True
        assert web.post("/api/model/unload").json()["success"] is True


class HalfAnswer:
    """A model server that sends one event, then waits to be told, then dies."""

    EVENT = b'data: {"type":"token","text":"The"}\n\n'

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.may_die = threading.Event()
        self.was_left = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
                + b"%x\r\n%s\r\n"
                % (len(self.EVENT), self.EVENT)
            )
            connection.settimeout(0.02)
            while not self.may_die.is_set() and not self.was_left.is_set():
                try:
                    if not connection.recv(1):
                        self.was_left.set()
                except TimeoutError:
                    continue


@pytest.fixture
def half_answer() -> Iterator[HalfAnswer]:
    server = HalfAnswer()
    yield server
    server.may_die.set()
    server.listener.close()


def ask_through(web: httpx2.Client) -> Any:
    return web.stream("POST", "/api/model/generate", json={"prompt": "x", "streaming": True})


def test_stream_passes_piece_by_piece_and_ends_with_an_error_if_the_server_dies(
    workspace: Workspace, half_answer: HalfAnswer
) -> None:
    with served(create_app(workspace, GuardSettings(), half_answer.url)) as web:
        with ask_through(web) as reply:
            lines = (line for line in reply.iter_lines() if line)
            assert "The" in next(lines)  # while the model server still answers
            half_answer.may_die.set()
            (last,) = lines
    assert '"type":"error"' in last and "MODEL_SERVER_UNAVAILABLE" in last


def test_client_that_goes_away_is_hung_up_on_the_model_server_too(
    workspace: Workspace, half_answer: HalfAnswer
) -> None:
    with served(create_app(workspace, GuardSettings(), half_answer.url)) as web:
        with ask_through(web) as reply:
            next(reply.iter_lines())
        eventually(half_answer.was_left.is_set)


def test_web_server_imports_no_machine_learning_library() -> None:
    heavy = "torch transformers numpy matplotlib pyarrow mlx huggingface_hub tokenizers jinja2"
    code = (
        "import sys, forgellm.web.app\n"
        f"print([name for name in {heavy.split()} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
