"""The jobs that measure, clean and divide datasets, each in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.web.api import preparation
from forgellm.web.app import create_app
from serving import eventually, finished_job
from tiny_workspace import write_conversations, write_documents


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    found = Workspace(tmp_path)
    folder = write_documents(found, "notes", 130)
    (folder / "copy.txt").write_text((folder / "000.txt").read_text() + "\n")
    (folder / "broken.pdf").write_bytes(b"%PDF")
    return found


@pytest.fixture
def web(workspace: Workspace) -> Iterator[TestClient]:
    app = create_app(workspace, GuardSettings(), "http://127.0.0.1:1")
    with TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 1)) as client:
        yield client


def start(web: TestClient, task: str, name: str = "notes", **body: Any) -> str:
    reply = web.post(f"/api/datasets/{name}/{task}", json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["job_id"])


def test_a_dataset_is_prepared_and_a_removal_undone(web: TestClient, workspace: Workspace) -> None:
    job = finished_job(web, start(web, "prepare", similarity=1.0))
    assert (job["kind"], job["status"], job["error"]) == ("prepare_dataset", "completed", None)
    result = job["result"]
    assert (result["name"], result["num_read"], result["num_written"]) == (
        "notes-prepared",
        131,
        130,
    )
    assert result["skipped"][0]["source"] == "broken.pdf"
    reply = web.get("/api/datasets/notes-prepared/preparation").json()
    (removal,) = reply["removals"]
    assert removal["source"] == "copy.txt" and removal["duplicate_of"] == "000.txt"
    assert reply["fingerprint"] == result["fingerprint"]
    assert web.get("/api/datasets/notes-prepared/preparation?offset=1").json()["removals"] == []

    again = finished_job(web, start(web, "restore", "notes-prepared", removals=[removal["id"]]))
    assert again["result"]["num_written"] == 131
    assert (workspace.datasets / "notes-prepared" / "copy.txt").is_file()


def test_reports_come_with_their_lists_cut_short(web: TestClient, tmp_path: Path) -> None:
    (tmp_path / "probes.json").write_text(json.dumps({"probes": []}))
    result = finished_job(web, start(web, "inspect"))["result"]
    assert (result["items"], len(result["files"]), result["tokens_are"]) == (131, 100, "estimated")
    assert finished_job(web, start(web, "stats"))["result"]["num_files"] == 132
    assert finished_job(web, start(web, "dedup"))["result"]["num_exact"] == 1
    result = finished_job(web, start(web, "split", against=["probes.json"]))["result"]
    assert result["train"]["items"] + result["validation"]["items"] == 131
    assert set(result["overlaps"]) == {"validation", "probes.json"}


def test_conversations_are_known_for_what_they_are(web: TestClient, workspace: Workspace) -> None:
    write_conversations(workspace, "chats", 20)
    assert finished_job(web, start(web, "stats", "chats"))["result"]["kind"] == "conversations"


def test_what_cannot_be_done_is_refused_at_once(web: TestClient) -> None:
    cases: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("gone", "inspect", {}, 404, "DATASET_NOT_FOUND"),
        ("notes", "inspect", {"model": "gone"}, 404, "MODEL_NOT_FOUND"),
        ("notes", "split", {"against": ["../secret.json"]}, 404, "PATH_NOT_FOUND"),
        ("notes", "prepare", {"against": ["dataset"]}, 404, "PATH_NOT_FOUND"),
        ("notes", "dedup", {"similarity": 0.1}, 400, "INVALID_REQUEST"),
        ("notes", "restore", {}, 400, "INVALID_REQUEST"),
    ]
    for name, task, body, status, code in cases:
        reply = web.post(f"/api/datasets/{name}/{task}", json=body)
        assert (reply.status_code, reply.json()["error_code"]) == (status, code), (task, reply.text)
    reply = web.get("/api/datasets/notes/preparation")
    assert (reply.status_code, reply.json()["error_code"]) == (404, "NOT_FOUND")
    job = finished_job(web, start(web, "restore", removals="all"))
    assert (job["status"], job["error"]["error_code"]) == ("failed", "NOT_FOUND")


def test_a_running_job_is_ended_and_leaves_nothing(
    web: TestClient, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = (
        "import signal, sys, time; sys.path[:0] = {path!r}; from forgellm.data.cleaning import items;"
        "items.Spool.items = lambda *a: time.sleep(600);"
        "from forgellm.data.cleaning.__main__ import main; sys.exit(main())"
    )
    command = (sys.executable, "-c", hang.format(path=sys.path))
    monkeypatch.setattr(preparation, "WORKER", command)
    job_id = start(web, "prepare")

    def works() -> bool:
        return any(path.name.startswith(".notes-prepared") for path in workspace.datasets.iterdir())

    eventually(works)
    assert web.post(f"/api/jobs/{job_id}/cancel").status_code == 200
    assert finished_job(web, job_id)["status"] == "cancelled"
    assert [path.name for path in workspace.datasets.iterdir()] == ["notes"]


def test_an_inspection_says_what_of_rows_is_not_used(web: TestClient, workspace: Workspace) -> None:
    folder = workspace.datasets / "noted"
    folder.mkdir()
    rows: list[Any] = [
        {"prompt": f"{n}?", "response": f"Yes {n}.", "remark": "x"} for n in range(5)
    ]
    rows.append({"prompt": "Which?", "response": None, "history": [["one"]]})
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = finished_job(web, start(web, "inspect", "noted", kind="conversations"))["result"]
    assert result["items"] == 5
    assert [(note["reason"], note["rows"]) for note in result["notes"]] == [
        ("the column 'remark' is not used", 5)
    ]
    assert [item["rows"] for item in result["skipped"]] == [1]
