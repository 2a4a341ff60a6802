"""A folder of some 300 files of every kind, from inspection to training, as its owner and the page see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from forgellm.cli.main import main
from forgellm.data.token_store import open_store
from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.runs.store import latest_run
from forgellm.web.app import create_app
from mixed_files import TEMPLATE, MixedFile, write_mixed_files
from serving import finished_job
from tiny_workspace import build_tiny_workspace

KINDS = {"cpt": "documents", "ift": "conversations", "dpo": "pairs"}
FLAGS = (
    "train --model tiny --dataset mixed --dtype float32 --max-iterations 1 --batch-size 1"
    " --max-seq-length 512 --save-every 1 --lora-rank 2 --data-mixture-ratio 1 --allow-overlap"
).split()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    found = build_tiny_workspace(tmp_path_factory.mktemp("mixed"), num_documents=2)
    (found.base_models / "tiny" / "chat_template.jinja").write_text(TEMPLATE)
    return found


@pytest.fixture(scope="module")
def files(workspace: Workspace) -> list[MixedFile]:
    return write_mixed_files(workspace.datasets / "mixed")


@pytest.mark.parametrize("method", KINDS)
def test_each_method_trains_on_its_own_and_the_terminal_tells_of_the_rest(
    method: str,
    workspace: Workspace,
    files: list[MixedFile],
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--training-type", method, "--workspace", str(workspace.root)]
    assert main([*FLAGS, *flags]) == 0
    run = latest_run(workspace)
    assert run is not None
    data = run.record().data
    assert data["documents"] == sum(file.learned_by(method) for file in files)
    store = open_store(workspace.cache / "tokens", data["cache_key"])
    assert store is not None
    learned = sum(file.learned_by(method) for file in files if file.rows is not None)
    told = sum(item.rows or 0 for item in store.report.skipped)
    whole = {item.source for item in store.report.skipped if item.rows is None}
    assert learned + told == sum(file.rows or 0 for file in files if file.name not in whole)
    assert "Not all of the dataset is used" in capsys.readouterr().err
    assert any("learned with training_type" in text for text in run.record().warnings)


def test_the_page_counts_each_kind_and_cleans_the_documents(
    workspace: Workspace, files: list[MixedFile]
) -> None:
    app = create_app(workspace, GuardSettings(), "http://127.0.0.1:1")
    with TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 1)) as web:

        def done(task: str, **body: Any) -> Any:
            job = web.post(f"/api/datasets/mixed/{task}", json=body).json()["job_id"]
            return finished_job(web, job)["result"]

        totals = {kind: sum(f.learned_by(m) for f in files) for m, kind in KINDS.items()}
        listed = {f.name for f in files if not f.is_of_system}
        for kind, total in totals.items():
            found = done("inspect", kind=kind, model="tiny")
            assert found["items"] == total
            assert found["others"].keys() == totals.keys() - {kind}
        made = done("prepare", kind="documents", duplicates=False, boilerplate=False)
        assert made["num_read"] == made["num_written"] == totals["documents"]
        info = web.get("/api/dataset/info").json()["datasets"]
        (mixed,) = [item for item in info if item["name"] == "mixed"]
        unsupported = {f.name for f in files if f.reason == "unsupported type"}
        assert mixed["file_count"] == len(listed - unsupported)
        preview = web.get("/api/datasets/mixed/preview?model=tiny")
        assert preview.status_code == 200, preview.text


def test_inspection_in_the_terminal_names_every_kind(
    workspace: Workspace,
    files: list[MixedFile],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(workspace.root)
    assert main(["data", "inspect", "mixed"]) == 0
    shown = capsys.readouterr().out
    assert "Also in it:" in shown and "learned with training_type" in shown
    assert Path("Thumbs.db").name not in shown
