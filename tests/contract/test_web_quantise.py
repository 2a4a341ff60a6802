"""Quantising through the web server: a real model, a real child process, real replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from forgellm.catalog import find_model
from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.schema.quantising import QuantisedModel
from forgellm.web.app import create_app
from serving import eventually, finished_job
from tiny_workspace import build_tiny_workspace

URL = "/api/models/quantize"
TINY = {"model_name": "base/tiny", "bits": 8, "group_size": 32}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_tiny_workspace(tmp_path / "w")


@pytest.fixture
def web(workspace: Workspace) -> TestClient:
    app = create_app(workspace, GuardSettings(), "http://127.0.0.1:1")
    return TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 40000))


def test_a_model_is_quantised_as_a_job(web: TestClient, workspace: Workspace) -> None:
    job_id = web.post(URL, json=TINY).json()["job_id"]
    assert web.post(URL, json=TINY).json()["job_id"] == job_id  # the one that is at it already
    job = finished_job(web, job_id)
    assert (job["status"], job["kind"], job["error"]) == ("completed", "quantise", None)
    made = QuantisedModel.model_validate(job["result"])
    assert find_model(made.model_name, workspace).facts.quantization == "mlx 8-bit"
    again = web.post(URL, json=TINY)
    assert (again.status_code, again.json()["error_code"]) == (409, "CONFLICT")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_name": "base/absent"}, (404, "MODEL_NOT_FOUND")),
        ({"model_name": "../../etc"}, (404, "MODEL_NOT_FOUND")),
        ({"bits": 3}, (400, "INVALID_REQUEST")),
        ({"group_size": 48}, (400, "INVALID_REQUEST")),
        ({"group_size": "large"}, (400, "INVALID_REQUEST")),
    ],
)
def test_what_cannot_be_quantised_is_said_without_a_job(
    web: TestClient, changes: dict[str, Any], expected: tuple[int, str]
) -> None:
    reply = web.post(URL, json=TINY | changes)
    assert (reply.status_code, reply.json()["error_code"]) == expected
    assert web.get("/api/jobs").json()["jobs"] == []


def test_a_cancelled_job_leaves_nothing(web: TestClient, workspace: Workspace) -> None:
    job_id = web.post(URL, json=TINY).json()["job_id"]
    assert web.post(f"/api/jobs/{job_id}/cancel").status_code == 200
    eventually(lambda: web.get(f"/api/jobs/{job_id}").json()["job"]["status"] == "cancelled")
    assert list(workspace.published_models.glob("[!.]*")) == []
