"""Publishing through the web server: a real checkpoint, a real child process, real replies."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from forgellm import supervisor
from forgellm.catalog import find_model
from forgellm.cli.main import main
from forgellm.guard import GuardSettings
from forgellm.runs.store import Run
from forgellm.training.session import Session
from forgellm.web.app import create_app
from serving import eventually, finished_job
from tiny_workspace import build_tiny_workspace, tiny_recipe

URL = "/api/training/publish_checkpoint"
SPEC_FIELDS = {
    "success", "message", "published_model_path", "model_name", "dashboard_path", "readme_path",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("publish"))
    found, lock = supervisor.claim_new_run(workspace, tiny_recipe(), max_seq_length=64)
    with lock:
        Session().train(found)
    return found


@pytest.fixture
def web(run: Run) -> TestClient:
    app = create_app(run.workspace, GuardSettings(), "http://127.0.0.1:1")
    return TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 40000))


def weights(run: Run, iteration: int) -> str:
    return f"{run.output_dir}/{iteration:07d}_adapters.safetensors"


def failed(reply: Any, status_code: int, code: str) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()
    assert set(found) == {"success", "error", "error_code", "details", "suggestion"}
    assert (reply.status_code, found["error_code"]) == (status_code, code)
    return found


def test_the_reply_comes_when_the_files_are_there(web: TestClient, run: Run) -> None:
    body = {"checkpoint_path": weights(run, 8), "training_dir": run.output_dir}
    reply = web.post(URL, json=body)
    found = reply.json()
    assert reply.status_code == 200
    assert set(found) == SPEC_FIELDS | {"verification"}
    assert found["message"] == "Checkpoint published successfully"
    assert found["published_model_path"] == f"models/{found['model_name']}"
    for field in ("dashboard_path", "readme_path"):
        assert (run.workspace.root / found[field]).is_file()
    assert found["verification"]["top1_agreement"] == 1.0
    assert find_model(found["model_name"], run.workspace).kind == "published"


def test_async_answers_with_a_job_that_ends_with_the_result(web: TestClient, run: Run) -> None:
    reply = web.post(URL, json={"checkpoint_path": weights(run, 4), "async": True}).json()
    assert set(reply) == {"success", "message", "job_id"}
    job = finished_job(web, reply["job_id"])
    assert (job["status"], job["progress"], job["error"]) == ("completed", 1.0, None)
    assert find_model(job["result"]["model_name"], run.workspace)
    assert [j["job_id"] for j in web.get("/api/jobs").json()["jobs"]] == [reply["job_id"]]


def test_the_same_checkpoint_is_published_once_for_two_who_ask_at_once(
    web: TestClient, run: Run
) -> None:
    body = {"checkpoint_path": weights(run, 12)}
    names: list[str] = []
    threads = [
        threading.Thread(target=lambda: names.append(web.post(URL, json=body).json()["model_name"]))
        for _ in range(2)
    ]
    with web:  # one event loop for both
        job = web.post(URL, json={**body, "async": True}).json()["job_id"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [j["job_id"] for j in web.get("/api/jobs").json()["jobs"]] == [job]
    assert len(names) == 2 and len(set(names)) == 1


@pytest.mark.parametrize(
    "path", ["nix", "../../etc/passwd", "/etc/passwd", "models", "dataset/notes/000.txt", "a\x00b"]
)
def test_what_is_no_checkpoint_is_404_without_a_job(web: TestClient, path: str) -> None:
    found = failed(web.post(URL, json={"checkpoint_path": path}), 404, "CHECKPOINT_NOT_FOUND")
    assert "/etc" not in str(found)
    assert web.get("/api/jobs").json()["jobs"] == []


def test_a_training_dir_that_is_no_run_is_404(web: TestClient, run: Run) -> None:
    body = {"checkpoint_path": weights(run, 8), "training_dir": "models/base/tiny"}
    failed(web.post(URL, json=body), 404, "RUN_NOT_FOUND")


@pytest.mark.parametrize(
    "body", [{}, {"checkpoint_path": ""}, {"checkpoint_path": 5}, {"checkpoint_path": "a", "x": 1},
             {"checkpoint_path": "a", "async": "later"}],
)  # fmt: skip
def test_a_wrong_body_is_400(web: TestClient, body: dict[str, Any]) -> None:
    assert web.post(URL, json=body).status_code == 400


def test_a_failure_of_the_child_is_the_reply(run: Run, web: TestClient) -> None:
    config = run.folder / "adapter_config.json"
    text = config.read_text()
    config.write_text("{}")
    try:
        failed(web.post(URL, json={"checkpoint_path": weights(run, 8)}), 500, "CHECKPOINT_CORRUPT")
        (job,) = web.get("/api/jobs").json()["jobs"]
        assert (job["status"], job["error"]["error_code"]) == ("failed", "CHECKPOINT_CORRUPT")
    finally:
        config.write_text(text)


def test_adapters_are_combined_as_a_job(run: Run, web: TestClient) -> None:
    body = {"checkpoints": [f"{run.name}@4", f"{run.name}@12"], "name": "both"}
    job_id = web.post("/api/models/combine", json=body).json()["job_id"]
    job = finished_job(web, job_id)
    assert (job["kind"], job["error"]) == ("combine", None)
    assert [part["weight"] for part in job["result"]["parts"]] == [0.5, 0.5]
    assert find_model(job["result"]["model_name"], run.workspace).kind == "published"
    failed(web.post("/api/models/combine", json=body), 409, "CONFLICT")
    body = {"checkpoints": [run.name, "gone"], "name": "other"}
    failed(web.post("/api/models/combine", json=body), 404, "RUN_NOT_FOUND")
    body = {"checkpoints": [run.name, run.name], "weights": [1.0], "name": "other"}
    assert web.post("/api/models/combine", json=body).status_code == 400


def test_a_cancelled_publication_leaves_nothing(run: Run, web: TestClient) -> None:
    published = run.workspace.published_models
    before = set(published.glob("*"))
    body = {"checkpoint_path": weights(run, 8), "async": True}
    job_id = web.post(URL, json=body).json()["job_id"]
    assert web.post(f"/api/jobs/{job_id}/cancel").status_code == 200
    eventually(lambda: web.get(f"/api/jobs/{job_id}").json()["job"]["status"] == "cancelled")
    assert set(published.glob("*")) == before
    failed(web.post(f"/api/jobs/{job_id}/cancel"), 409, "CONFLICT")


def test_the_command_publishes_the_best_checkpoint(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(run.workspace.root)
    assert main(["publish", "--workspace", root, "--run", run.name]) == 0
    out = capsys.readouterr().out
    name = out.split("forgellm cli generate --model ")[1].strip()
    assert find_model(name, run.workspace)
    assert main(["publish", "--workspace", root, "--run", run.name, "--iteration", "5"]) == 1
    assert "CHECKPOINT_NOT_FOUND" in capsys.readouterr().err


def test_the_server_publishes_without_an_engine_of_its_own() -> None:
    code = (
        "import sys; from forgellm.web.app import create_app;"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib', 'yaml'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
