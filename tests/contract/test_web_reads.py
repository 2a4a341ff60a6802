"""Lists, dashboards, estimates and previews of the web server, on a workspace with finished runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from forgellm import hardware, supervisor
from forgellm.data.document_store import token_store
from forgellm.data.tokenizer import Tokenizer
from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.runs.metrics import METRICS_NAME, MetricsWriter
from forgellm.runs.store import Run, create_run
from forgellm.schema.run import RunState
from forgellm.training.session import Session
from forgellm.web.app import create_app
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_documents


def client_of(workspace: Workspace) -> TestClient:
    app = create_app(workspace, GuardSettings(), "http://127.0.0.1:1")
    return TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 40000))


def train(workspace: Workspace, **fields: Any) -> Run:
    recipe = tiny_recipe(**fields)
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=64)
    with lock:
        assert Session().train(run).phase == "completed"
    return run


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("no-cache")))
        yield build_tiny_workspace(tmp_path_factory.mktemp("reads") / "workspace")


@pytest.fixture(scope="module")
def first(workspace: Workspace) -> Run:
    return train(workspace)


@pytest.fixture(scope="module")
def second(workspace: Workspace, first: Run) -> Run:
    return train(workspace, learning_rate=2e-3, max_iterations=8)


@pytest.fixture
def web(workspace: Workspace) -> TestClient:
    return client_of(workspace)


def ask(web: TestClient, path: str, /, **query: Any) -> Any:
    reply = web.get(path, params=query)
    assert reply.status_code == 200, reply.text
    return reply.json()


def refused(web: TestClient, path: str, status_code: int, code: str, /, **query: Any) -> Any:
    reply = web.get(path, params=query)
    assert (reply.status_code, reply.json()["error_code"]) == (status_code, code), reply.text
    return reply.json()


@pytest.mark.parametrize(
    "path",
    ["/api/models", "/api/checkpoints", "/api/dashboard/data", "/api/dashboard/realtime",
     "/api/dataset/info", "/api/filesystem/browse", "/api/runs", "/api/queue", "/api/trash",
     "/api/hosts"],
)  # fmt: skip
def test_an_empty_workspace_has_empty_lists_and_nulls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    found = ask(client_of(Workspace(tmp_path.resolve())), path)
    assert found.pop("success") is True
    assert not [item for values in found.values() if isinstance(values, list) for item in values]


def test_machines_are_listed_by_name_and_address_alone(tmp_path: Path) -> None:
    web = client_of(Workspace(tmp_path.resolve()))
    file = tmp_path / "hosts.toml"
    file.write_text('[hosts.b]\naddress = "10.0.0.2"\nuser = "anna"\n[hosts.a]\naddress = "a"\n')
    assert ask(web, "/api/hosts")["hosts"] == [
        {"name": "b", "address": "10.0.0.2"},
        {"name": "a", "address": "a"},
    ]
    file.write_text("[hosts.a]\n")
    problem = refused(web, "/api/hosts", 400, "INVALID_CONFIG")["details"]["problems"][0]
    assert problem == {"field": "hosts.a.address", "message": "required"}


def test_a_base_model_is_listed_by_the_name_that_loads_it(web: TestClient, first: Run) -> None:
    found = ask(web, "/api/models")
    (base,) = found["cached_models"]
    assert (base["name"], base["path"], base["cached"]) == ("base/tiny", "base/tiny", True)
    recipe = {"model_name": base["name"], "dataset": "notes"}
    assert web.post("/api/estimate", json=recipe).status_code == 200
    assert first.name in [model["name"] for model in found["cpt_models"]]
    assert f"cpt/{first.name}" in [model["path"] for model in found["cpt_models"]]


def test_checkpoints_are_of_the_run_that_is_asked_for(
    web: TestClient, first: Run, second: Run
) -> None:
    latest = ask(web, "/api/checkpoints")
    assert latest["training_dir"] == second.output_dir
    assert {item["iteration"] for item in latest["checkpoints"]} == {4, 8}
    named = ask(web, "/api/checkpoints", training_dir=first.output_dir)
    assert {item["iteration"] for item in named["checkpoints"]} == {4, 8, 12}
    for item in named["checkpoints"]:
        weights = first.workspace.root / item["path"]
        assert item["size_mb"] == pytest.approx(weights.stat().st_size / 1e6, abs=0.001)


@pytest.mark.parametrize("training_dir", ["models/cpt/none", "../..", "/etc", "models/cpt", "a\0"])
def test_a_training_dir_that_is_no_run_is_not_found(web: TestClient, training_dir: str) -> None:
    for path in ("/api/checkpoints", "/api/dashboard/data"):
        refused(web, path, 404, "RUN_NOT_FOUND", training_dir=training_dir)


def test_dashboard_sums_the_run_up(web: TestClient, first: Run) -> None:
    found = ask(web, "/api/dashboard/data", training_dir=first.output_dir)
    lines = [json.loads(line) for line in (first.folder / METRICS_NAME).read_text().splitlines()]
    gaps = [point.pop("generalisation_gap") for point in found["training_data"]]
    assert found["training_data"] == lines
    assert [gap is not None for gap in gaps] == [
        line["validation_loss"] is not None and line["iteration"] > 0 for line in lines
    ]
    known = [gap for gap in gaps if gap is not None]
    mean = sum(known[-3:]) / len(known[-3:])
    assert found["performance_metrics"]["generalisation_gap"] == pytest.approx(mean)
    figures = found["performance_metrics"]
    assert figures["best_validation_loss"] == min(
        line["validation_loss"] for line in lines if line["validation_loss"]
    )
    assert figures["best_iteration"] == found["best_checkpoints"][0]
    assert figures["final_loss"] == lines[-1]["training_loss"]
    assert 0 < figures["training_stability"] <= 1
    assert found["training_config"]["lora_rank"] == 4
    assert (found["phase"], found["is_training"]) == ("completed", False)


def test_a_long_run_is_thinned_but_keeps_its_peak(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path.resolve())
    run = create_run(workspace, tiny_recipe(max_iterations=10_000), 64)
    with MetricsWriter(run.folder) as metrics:
        for iteration in range(1, 5001):
            loss = 99.0 if iteration == 3333 else 2.0
            metrics.append(iteration=iteration, training_loss=loss, learning_rate=1e-3)
    points = ask(client_of(workspace), "/api/dashboard/data")["training_data"]
    assert 1000 < len(points) <= 2000
    assert max(point["training_loss"] for point in points) == 99.0
    assert (points[0]["iteration"], points[-1]["iteration"]) == (1, 5000)


def test_realtime_shows_the_newest_line(
    web: TestClient, second: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpu_utilization", lambda: 0.25)
    found = ask(web, "/api/dashboard/realtime")
    last = json.loads((second.folder / METRICS_NAME).read_text().splitlines()[-1])
    shown = found["current_metrics"]
    assert shown.pop("gpu_utilization") == 0.25
    assert shown == {name: last[name] for name in shown}
    assert found["is_training"] is False


def test_gpu_utilization_is_what_the_drivers_tool_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    tool = tmp_path / "nvidia-smi"
    for answer, expected in (("87", 0.87), ("[N/A]", None), ("", None)):
        tool.write_text(f"#!/bin/sh\necho '{answer}'\n")
        tool.chmod(0o755)
        assert hardware.gpu_utilization() == expected


def test_gpus_are_named_as_the_drivers_tool_names_them(
    web: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200'\necho 'NVIDIA L40S'\n")
    tool.chmod(0o755)
    hardware.gpu_names.cache_clear()
    try:
        assert ask(web, "/api/health")["system_info"]["gpus"] == ["NVIDIA H200", "NVIDIA L40S"]
    finally:
        hardware.gpu_names.cache_clear()


def test_compared_runs_share_their_iterations(web: TestClient, first: Run, second: Run) -> None:
    found = ask(web, "/api/compare", runs=f"{first.name},{second.record().training_id}")
    assert found["iterations"] == list(range(13))
    assert [run["name"] for run in found["runs"]] == [first.name, second.name]
    for run in found["runs"]:
        assert len(run["curve"]["training_loss"]) == len(run["curve"]["validation_loss"]) == 13
    assert found["runs"][1]["curve"]["training_loss"][9:] == [None] * 4
    assert found["runs"][0]["curve"]["validation_loss"][12] is not None
    assert found["differences"]["max_iterations"] == [12, 8]
    assert "batch_size" not in found["differences"]


def test_comparison_needs_runs_that_exist(web: TestClient, first: Run) -> None:
    refused(web, "/api/compare", 404, "RUN_NOT_FOUND", runs=f"{first.name},none")
    refused(web, "/api/compare", 400, "INVALID_REQUEST", runs=",")
    refused(web, "/api/compare", 400, "INVALID_REQUEST", runs=",".join("abcdefghi"))


def test_estimated_tokens_are_near_those_that_are_trained_on(
    web: TestClient, workspace: Workspace, tmp_path: Path
) -> None:
    (info,) = [x for x in ask(web, "/api/dataset/info")["datasets"] if x["name"] == "notes"]
    tokenizer = Tokenizer.load(workspace.base_models / "tiny")
    exact = len(token_store(workspace.datasets / "notes", tokenizer, tmp_path).tokens)
    assert info["estimated_tokens"] == pytest.approx(exact, rel=0.05)
    assert (info["file_count"], info["path"]) == (24, "dataset/notes")


def test_estimated_tokens_follow_the_files(web: TestClient, workspace: Workspace) -> None:
    def tokens() -> int:
        found = ask(web, "/api/dataset/info")["datasets"]
        return int(next(x for x in found if x["name"] == "growing")["estimated_tokens"])

    folder = write_documents(workspace, "growing", 3)
    before = tokens()
    assert tokens() == before > 0
    (folder / "more.txt").write_text("the lamp keeper walks north " * 50_000)
    assert tokens() > 100 * before


def test_without_a_model_no_tokens_are_invented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    workspace = Workspace(tmp_path.resolve())
    write_documents(workspace, "notes", 2)
    found = ask(client_of(workspace), "/api/dataset/info")
    assert (found["tokenizer"], found["datasets"][0]["estimated_tokens"]) == (None, None)
    refused(client_of(workspace), "/api/datasets/notes/preview", 404, "MODEL_NOT_FOUND")


def test_preview_shows_the_rows_that_a_run_trains_on(web: TestClient, workspace: Workspace) -> None:
    from forgellm.data.prepare import prepare_data

    found = ask(web, "/api/datasets/notes/preview", model="tiny", max_seq_length=200, blocks=2)
    tokenizer = Tokenizer.load(workspace.base_models / "tiny")
    recipe = tiny_recipe(data_mixture_ratio=1.0, max_seq_length=200)
    batch = prepare_data(recipe, workspace, tokenizer, 200).batch(0)
    for row, block in enumerate(found["blocks"]):
        assert block["token_ids"] == batch.tokens[row].tolist()
        assert block["segment_ids"] == batch.segment_ids[row].tolist()
        assert block["loss_mask"] == batch.loss_mask[row].tolist()
        assert len(block["tokens"]) == 200
    assert found["complete"] is True
    documents = found["documents"]
    assert sum(item["tokens"] for item in documents) == found["token_count"]
    assert {item["split"] for item in documents} == {"train", "validation"}


def test_preview_says_what_it_leaves_out(web: TestClient, workspace: Workspace) -> None:
    folder = write_documents(workspace, "mixed", 1)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "large.txt").write_text("the tide " * 300_000)
    found = ask(web, "/api/datasets/mixed/preview", max_seq_length=32)
    assert found["skipped"] == ["picture.png: unsupported type"]
    assert found["complete"] is False
    assert found["document_count"] == 2


def test_preview_of_what_is_no_dataset(web: TestClient, workspace: Workspace) -> None:
    (workspace.datasets / "empty").mkdir()
    assert ask(web, "/api/datasets/empty/preview")["blocks"] == []
    for name in ("none", "..", ".", "%2e%2e", "a%00b"):
        reply = web.get(f"/api/datasets/{name}/preview")
        assert (reply.status_code, reply.json()["success"]) == (404, False)


def test_estimate_says_what_a_run_takes_and_starts_none(web: TestClient, second: Run) -> None:
    before = ask(web, "/api/runs")["total"]
    recipe = tiny_recipe(max_iterations=24).model_dump(exclude_unset=True)
    found = web.post("/api/estimate", json=recipe).json()
    assert (found["fits"], found["problem"], found["max_seq_length"]) == (True, None, 64)
    assert found["total_tokens"] == 24 * 2 * 64
    seconds = found["total_tokens"] / found["time"]["tokens_per_second"]
    assert found["time"]["minutes"] == pytest.approx(seconds / 60, abs=0.01)
    assert found["time"]["based_on"] == second.name  # the newest of the same kind
    assert 0 < found["memory"]["total_gb"] < found["memory"]["available_gb"]
    assert ask(web, "/api/runs")["total"] == before


def test_estimate_of_what_does_not_fit_says_what_would(
    web: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "training_memory_bytes", lambda: 690_000_000)
    recipe = tiny_recipe(batch_size=512).model_dump(exclude_unset=True)
    found = web.post("/api/estimate", json=recipe).json()
    assert (found["fits"], found["problem"]["error_code"]) == (False, "MEMORY_TOO_SMALL")
    assert "would fit" in found["problem"]["suggestion"]
    assert found["memory"]["total_gb"] > found["memory"]["available_gb"]
    reply = web.post("/api/estimate", json=recipe | {"model_name": "none"})
    assert reply.json()["error_code"] == "MODEL_NOT_FOUND"


def test_browse_counts_what_is_below_a_folder(web: TestClient, workspace: Workspace) -> None:
    deep = workspace.datasets / "deep" / "inner"
    deep.mkdir(parents=True)
    (deep / "a.txt").write_bytes(b"x" * 1500)
    (workspace.datasets / "readme.txt").write_bytes(b"y" * 2000)
    found = ask(web, "/api/filesystem/browse", path="dataset")
    (entry,) = [item for item in found["directories"] if item["name"] == "deep"]
    assert (entry["file_count"], entry["size_mb"], entry["complete"]) == (1, 0.002, True)
    assert found["files"] == [{"name": "readme.txt", "type": "file", "size_mb": 0.002}]
    assert found["path"] == "dataset"
    assert ask(web, "/api/filesystem/browse")["path"] == "."


def test_browse_stays_in_the_workspace(
    web: TestClient, workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "secret.txt").write_text("outside")
    (workspace.root / "way-out").symlink_to(tmp_path)
    (workspace.root / ".hidden").mkdir(exist_ok=True)
    names = [item["name"] for item in ask(web, "/api/filesystem/browse")["directories"]]
    assert "way-out" not in names and ".hidden" not in names
    inside_out = ("way-out", "..", "/", "~", "dataset/../..", ".hidden", "a\0b", "dataset/none")
    for path in inside_out:
        refused(web, "/api/filesystem/browse", 404, "PATH_NOT_FOUND", path=path)


def test_names_that_are_not_utf8_can_be_shown(web: TestClient, workspace: Workspace) -> None:
    folder = write_documents(workspace, "odd", 1)
    try:
        os.close(os.open(os.fsencode(folder) + b"/\xff.txt", os.O_CREAT | os.O_WRONLY))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    found = ask(web, "/api/filesystem/browse", path="dataset/odd")
    assert "\\xff.txt" in found["files"][-1]["name"] or "udcff" in found["files"][-1]["name"]
    ask(web, "/api/dataset/info")
    ask(web, "/api/datasets/odd/preview")


def test_a_queued_run_is_listed_and_can_leave(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path.resolve())
    runs = [create_run(workspace, tiny_recipe(), 64, phase="queued") for _ in range(2)]
    runs[0].write_state(RunState(phase="queued"))
    web = client_of(workspace)
    found = ask(web, "/api/queue")
    assert [item["position"] for item in found["queue"]] == [1, 2]
    assert {item["name"] for item in found["queue"]} == {run.name for run in runs}
    assert web.delete(f"/api/queue/{found['queue'][0]['name']}").status_code == 200
    (left,) = ask(web, "/api/queue")["queue"]
    assert (left["name"], left["position"]) == (found["queue"][1]["name"], 1)
    again = web.delete(f"/api/queue/{found['queue'][0]['name']}")
    assert (again.status_code, again.json()["error_code"]) == (409, "CONFLICT")
