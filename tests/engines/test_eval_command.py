"""`forgellm eval` and `POST /api/evaluate`: any model, run or checkpoint, measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from forgellm import supervisor
from forgellm.cli.main import main
from forgellm.guard import GuardSettings
from forgellm.runs.evaluations import read_evaluations
from forgellm.runs.store import Run
from forgellm.training.session import Session
from forgellm.web.app import create_app
from serving import finished_job
from tiny_workspace import build_tiny_workspace, tiny_recipe

FILES = {"probe_files": ["dataset/p.jsonl"], "general_files": ["dataset/general.txt"]}
_PROBES = [
    {"question": "?", "stem": "counts the", "answer": "sacks", "distractors": ["miller", "boats"]},
    {"question": "?", "stem": "counts the", "answer": "boats", "distractors": ["miller", "sacks"]},
    {"question": "Who?", "answer": "the miller", "match": "exact"},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("no-cache")))
        workspace = build_tiny_workspace(tmp_path_factory.mktemp("eval") / "w")
        lines = "".join(json.dumps(probe) + "\n" for probe in _PROBES)
        (workspace.datasets / "p.jsonl").write_text(lines)
        (workspace.datasets / "general.txt").write_text("In spring the ice breaks. " * 8)
        recipe = tiny_recipe(engine="torch", max_iterations=4, **FILES)
        run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=64)
        with lock:
            Session().train(run)
        yield run


def measured(run: Run, name: str, capsys: pytest.CaptureFixture[str], *flags: str) -> Any:
    arguments = ["eval", name, "--workspace", str(run.workspace.root), "--engine", "torch"]
    arguments += ["--dtype", "float32", "--json", *flags]
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_a_model_and_a_run_measure_as_the_run_did_itself(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--probes", "dataset/p.jsonl", "--general", "dataset/general.txt"]
    start, end = read_evaluations(run.folder)
    found = measured(run, "tiny", capsys, *flags)
    assert (found["checkpoint"], found["engine"]) == (None, "torch")
    assert found["probes"][0]["right"] == start.probes[0].right
    assert found["general"][0]["loss"] == pytest.approx(start.general[0].loss, abs=1e-4)
    for name in (run.name, f"{run.output_dir}/0000004_adapters.safetensors"):
        found = measured(run, name, capsys, *flags)
        assert found["checkpoint"] == "0000004_adapters.safetensors"
        assert found["general"][0]["loss"] == pytest.approx(end.general[0].loss, abs=1e-4)


def test_files_from_anywhere_are_measured_and_told_in_words(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "elsewhere.json"
    file.write_text(json.dumps({"probes": _PROBES[:2]}))
    arguments = ["eval", "tiny", "--workspace", str(run.workspace.root), "--engine", "torch"]
    assert main([*arguments, "--probes", str(file)]) == 0
    text = capsys.readouterr().out
    assert "elsewhere.json: " in text and " of 2 right" in text and "95 % interval" in text
    assert "shipped: loss " in text and "17 documents" in text
    assert main([*arguments, "--probes", "absent.json"]) == 1
    assert "probe_files: there is no such path" in capsys.readouterr().err


@pytest.fixture
def web(run: Run) -> TestClient:
    app = create_app(run.workspace, GuardSettings(), "http://127.0.0.1:1")
    return TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 40000))


def test_a_job_measures_in_a_process_of_its_own(run: Run, web: TestClient) -> None:
    body = {"model": run.name, "engine": "torch", "dtype": "float32", **FILES}
    reply = web.post("/api/evaluate", json=body)
    assert reply.status_code == 200
    job = finished_job(web, reply.json()["job_id"])
    assert job["status"] == "completed", job
    end = read_evaluations(run.folder)[-1]
    assert job["result"]["probes"][0]["right"] == end.probes[0].right
    assert job["result"]["general"][0]["loss"] == pytest.approx(end.general[0].loss, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": "nix"}, "MODEL_NOT_FOUND"),
        ({"probe_files": ["../../etc/passwd"]}, "PATH_NOT_FOUND"),
        ({"general_files": ["/etc"]}, "PATH_NOT_FOUND"),
        ({"probe_files": [], "general_files": []}, "INVALID_REQUEST"),
        ({"probe_files": ["dataset/general.txt"]}, "DATASET_UNUSABLE"),
    ],
)
def test_what_cannot_be_measured_is_refused_without_a_job(
    web: TestClient, changes: dict[str, Any], code: str
) -> None:
    reply = web.post("/api/evaluate", json={"model": "tiny", **FILES, **changes})
    assert reply.json()["error_code"] == code
    assert web.get("/api/jobs").json()["jobs"] == []
