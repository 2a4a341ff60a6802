"""Exports through the web server: a real model, a real child process, real replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.web.app import create_app
from serving import finished_job
from tiny_workspace import build_tiny_workspace

URL = "/api/models/export"
TINY = {"model_name": "base/tiny", "format": "gguf", "type": "F16"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_tiny_workspace(tmp_path / "w")


@pytest.fixture
def web(workspace: Workspace) -> TestClient:
    app = create_app(workspace, GuardSettings(), "http://127.0.0.1:1")
    return TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 40000))


def code(reply: Any) -> tuple[int, str]:
    return reply.status_code, reply.json()["error_code"]


def test_a_model_is_exported_listed_and_deleted(web: TestClient, workspace: Workspace) -> None:
    job_id = web.post(URL, json=TINY).json()["job_id"]
    job = finished_job(web, job_id)
    assert (job["status"], job["kind"], job["error"]) == ("completed", "export_model", None)
    made = job["result"]
    assert (workspace.root / made["path"] / made["file"]).is_file()
    assert made["verification"]["top1_agreement"] > 0.95
    (item,) = web.get("/api/models/exports").json()["exports"]
    assert (item["name"], item["path"], item["kind"]) == (made["name"], made["path"], "gguf")
    assert made["file"] in item["files"]
    assert code(web.post(URL, json=TINY)) == (409, "CONFLICT")

    reply = web.delete(f"/api/models/exports/{made['name']}").json()
    assert reply["name"] == made["name"] and reply["freed_mb"] > 0
    assert web.get("/api/models/exports").json()["exports"] == []
    assert code(web.delete(f"/api/models/exports/{made['name']}")) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_name": "base/absent"}, (404, "MODEL_NOT_FOUND")),
        ({"model_name": "../../etc"}, (404, "MODEL_NOT_FOUND")),
        ({"type": "Q9_9"}, (400, "INVALID_REQUEST")),
        ({"type": "q8"}, (400, "INVALID_REQUEST")),
        ({"format": "zip"}, (400, "INVALID_REQUEST")),
    ],
)
def test_what_cannot_be_exported_is_said_without_a_job(
    web: TestClient, changes: dict[str, str], expected: tuple[int, str]
) -> None:
    assert code(web.post(URL, json=TINY | changes)) == expected
    assert web.get("/api/jobs").json()["jobs"] == []


@pytest.mark.parametrize("name", ["..%2Fbase", ".publish.lock", "..", "%00"])
def test_only_exports_are_deleted(web: TestClient, workspace: Workspace, name: str) -> None:
    assert web.delete(f"/api/models/exports/{name}").status_code in (400, 404, 405)
    assert (workspace.base_models / "tiny" / "config.json").is_file()
