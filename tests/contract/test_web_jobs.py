"""Jobs, downloads from a hub on this machine, and the search over local models."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from starlette.testclient import TestClient

from forgellm.errors import Conflict, InvalidRequest, NotFound, Unavailable
from forgellm.guard import GuardSettings
from forgellm.web import jobs as jobs_module
from forgellm.web.app import create_app
from forgellm.web.jobs import Job, JobRunner
from serving import PATIENCE_SECONDS, eventually
from tiny_workspace import build_tiny_workspace

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
FILES = {
    "config.json": b'{"model_type": "llama", "hidden_size": 8}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": save({"a.weight": np.zeros((300, 300))}),
}


@pytest.fixture
def runner() -> Iterator[JobRunner]:
    found = JobRunner()
    yield found
    found.close()


class Gate:
    """Work that waits until it is let go."""

    def __init__(self) -> None:
        self.started, self.released = threading.Event(), threading.Event()

    def __call__(self, job: Job) -> dict[str, Any]:
        self.started.set()
        assert self.released.wait(PATIENCE_SECONDS)
        job.report(0.5, "half")
        return {"done": True}


def test_a_job_goes_from_queued_to_completed(runner: JobRunner) -> None:
    seen: list[dict[str, Any]] = []
    runner.listeners.append(seen.append)
    gate = Gate()
    job = runner.submit("download", "a", gate, "download")
    gate.released.set()
    assert job.finished.result(PATIENCE_SECONDS) == {"done": True}
    assert [(item["status"], item["progress"]) for item in seen] == [
        ("queued", 0.0), ("running", 0.0), ("running", 0.5), ("completed", 1.0),
    ]  # fmt: skip
    assert seen[-1]["result"] == {"done": True} and seen[-1]["job_id"] == job.job_id


def test_one_heavy_job_at_a_time_and_downloads_beside_it(runner: JobRunner) -> None:
    first, second, download = Gate(), Gate(), Gate()
    runner.submit("publish_checkpoint", "1", first, "heavy")
    runner.submit("publish_checkpoint", "2", second, "heavy")
    runner.submit("download", "3", download, "download")
    assert first.started.wait(PATIENCE_SECONDS) and download.started.wait(PATIENCE_SECONDS)
    assert not second.started.is_set()
    for gate in (first, second, download):
        gate.released.set()
    assert second.started.wait(PATIENCE_SECONDS)


def test_a_waiting_job_is_cancelled_at_once_and_never_starts(runner: JobRunner) -> None:
    first, second = Gate(), Gate()
    running = runner.submit("publish_checkpoint", "1", first, "heavy")
    waiting = runner.submit("publish_checkpoint", "2", second, "heavy")
    runner.cancel(waiting.job_id)
    assert waiting.status == "cancelled"
    with pytest.raises(Conflict):
        waiting.finished.result(PATIENCE_SECONDS)
    first.released.set()
    running.finished.result(PATIENCE_SECONDS)
    assert not second.started.is_set()


def test_a_running_job_ends_at_its_next_report_when_cancelled(runner: JobRunner) -> None:
    gate, stopped = Gate(), threading.Event()
    job = runner.submit("download", "1", gate, "download")
    assert gate.started.wait(PATIENCE_SECONDS)
    job.stop_with(stopped.set)
    runner.cancel(job.job_id)
    assert stopped.is_set()
    gate.released.set()
    with pytest.raises(Conflict):
        job.finished.result(PATIENCE_SECONDS)
    assert (job.status, job.result, job.error) == ("cancelled", None, None)
    with pytest.raises(Conflict):
        runner.cancel(job.job_id)


def test_the_same_work_is_not_done_twice_at_once(runner: JobRunner) -> None:
    gate = Gate()
    first = runner.submit("download", "a", gate, "download")
    assert runner.submit("download", "a", Gate(), "download") is first
    assert runner.submit("download", "b", Gate(), "download") is not first
    gate.released.set()
    first.finished.result(PATIENCE_SECONDS)
    assert runner.submit("download", "a", lambda job: {}, "download") is not first


def test_failures_are_kept_as_envelopes(
    runner: JobRunner, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(job: Job) -> dict[str, Any]:
        raise InvalidRequest("no", suggestion="yes")

    def crash(job: Job) -> dict[str, Any]:
        raise RuntimeError("/secret/path")

    jobs = [runner.submit("download", w.__name__, w, "download") for w in (refuse, crash)]
    for job in jobs:
        assert job.finished.exception(PATIENCE_SECONDS) is not None
    refused, crashed = (job.error for job in jobs)
    assert refused == InvalidRequest("no", suggestion="yes").to_dict()
    assert crashed is not None and crashed["error_code"] == "INTERNAL_ERROR"
    assert "/secret" not in json.dumps(crashed) and "/secret" in caplog.text


def test_a_failing_listener_harms_no_job(runner: JobRunner) -> None:
    def listen(item: dict[str, Any]) -> None:
        raise RuntimeError

    runner.listeners.append(listen)
    job = runner.submit("download", "1", lambda job: {"x": 1}, "download")
    assert job.finished.result(PATIENCE_SECONDS) == {"x": 1}


def test_old_jobs_are_forgotten_and_the_queue_has_an_end(
    runner: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "MAX_FINISHED", 3)
    monkeypatch.setattr(jobs_module, "MAX_WAITING", 2)
    done = []
    for number in range(6):
        done.append(runner.submit("download", str(number), lambda job: {}, "download"))
        done[-1].finished.result(PATIENCE_SECONDS)
    assert runner.latest() == done[:-5:-1]
    with pytest.raises(NotFound):
        runner.get(done[0].job_id)
    gates = [Gate(), Gate()]
    for number, gate in enumerate(gates):
        runner.submit("publish_checkpoint", str(number), gate, "heavy")
    with pytest.raises(Unavailable):
        runner.submit("publish_checkpoint", "9", Gate(), "heavy")
    for gate in gates:
        gate.released.set()


# --- over HTTP ------------------------------------------------------------------------------


@pytest.fixture
def hold() -> threading.Event:
    """While it is clear, the hub stops after the first bytes of the weights."""
    event = threading.Event()
    event.set()
    return event


@pytest.fixture
def web(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: threading.Event
) -> Iterator[TestClient]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    workspace = build_tiny_workspace(tmp_path / "w")
    with ThreadingHTTPServer(("127.0.0.1", 0), _hub(hold)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        app = create_app(workspace, GuardSettings(), "http://127.0.0.1:1")
        yield TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 40000))
        hold.set()
        server.shutdown()
        thread.join()


def _hub(hold: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            if self.path.startswith("/api/models/org/tiny/"):
                self._send(json.dumps({"sha": COMMIT, "siblings": _siblings()}).encode())
            elif name in FILES and f"/{COMMIT}/" in self.path:
                self._send(FILES[name])
            else:
                self.send_response(404)
                self.end_headers()

        def _send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:1000])
            self.wfile.flush()
            assert len(content) < 1000 or hold.wait(PATIENCE_SECONDS)
            try:
                self.wfile.write(content[1000:])
            except OSError:
                pass  # the download was cancelled

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _siblings() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, content in FILES.items():
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 135}
        found.append(entry)
    return found


def job_of(web: TestClient, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = web.get(f"/api/jobs/{job_id}").json()["job"]
    return found


def test_a_model_is_downloaded_as_a_job(web: TestClient) -> None:
    reply = web.post("/api/models/download", json={"model_name": "org/tiny"}).json()
    assert set(reply) == {"success", "message", "job_id"}
    eventually(lambda: job_of(web, reply["job_id"])["status"] == "completed")
    job = job_of(web, reply["job_id"])
    assert (job["kind"], job["progress"]) == ("download", 1.0)
    assert job["result"] == {"model_name": "org/tiny", "revision": "main", "size_gb": 0.001}
    names = [m["name"] for m in web.get("/api/models/search?q=ORG+tiny").json()["models"]]
    assert names == ["org/tiny"]


def test_a_download_is_cancelled_in_the_middle(web: TestClient, hold: threading.Event) -> None:
    hold.clear()
    job_id = web.post("/api/models/download", json={"model_name": "org/tiny"}).json()["job_id"]
    eventually(lambda: job_of(web, job_id)["progress"] > 0)
    assert web.post(f"/api/jobs/{job_id}/cancel").json()["job"]["job_id"] == job_id
    hold.set()
    eventually(lambda: job_of(web, job_id)["status"] == "cancelled")
    assert web.get("/api/models/search?q=org").json()["models"] == []


def test_a_download_of_what_is_not_there_fails_with_the_hubs_error(web: TestClient) -> None:
    job_id = web.post("/api/models/download", json={"model_name": "org/none"}).json()["job_id"]
    eventually(lambda: job_of(web, job_id)["status"] == "failed")
    assert job_of(web, job_id)["error"]["error_code"] == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("name", ["../../x", "/etc", "a/b/c", "a--b", "http://host/x", "", "a b"])
def test_what_is_no_hub_id_is_refused_at_once(web: TestClient, name: str) -> None:
    reply = web.post("/api/models/download", json={"model_name": name})
    assert reply.status_code == 400
    assert web.get("/api/jobs").json() == {"success": True, "jobs": []}


def test_search_finds_all_words_and_everything_without_any(web: TestClient) -> None:
    for query, expected in (("tin base", 1), ("BASE/tiny", 1), ("tiny nix", 0), ("", 1)):
        reply = web.get("/api/models/search", params={"q": query}).json()
        assert (len(reply["models"]), reply["query"]) == (expected, query)
    assert set(web.get("/api/models/search").json()["models"][0]) == {
        "kind", "name", "path", "type", "size_gb", "created_at",
    }  # fmt: skip


def test_an_unknown_job_is_404(web: TestClient) -> None:
    for reply in (web.get("/api/jobs/nix"), web.post("/api/jobs/nix/cancel")):
        assert (reply.status_code, reply.json()["error_code"]) == (404, "NOT_FOUND")
