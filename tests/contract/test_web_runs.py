"""Runs looked into, followed, copied, renamed, deleted and brought back, on real run folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from forgellm import supervisor
from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.runs.lock import RunLock
from forgellm.runs.metrics import METRICS_NAME, MetricsWriter
from forgellm.runs.store import Run, create_run, list_runs, open_run
from forgellm.schema.recipe import parse_recipe
from forgellm.schema.run import RunState
from forgellm.training.session import Session
from forgellm.training.trainer_log import logging_to
from forgellm.web.app import create_app
from serving import eventually
from tiny_workspace import build_tiny_workspace, tiny_recipe


def client_of(workspace: Workspace) -> TestClient:
    app = create_app(workspace, GuardSettings(), "http://127.0.0.1:1")
    return TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 40000))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run. Tests that change runs work on copies of its workspace."""
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("trained") / "workspace")
    run, lock = supervisor.claim_new_run(workspace, tiny_recipe(), max_seq_length=64)
    with lock, logging_to(run.log_file):
        assert Session().train(run).phase == "completed"
    return run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Iterator[Run]:
    root = tmp_path / "workspace"
    shutil.copytree(trained.workspace.root, root)
    yield open_run(Workspace(root), root / trained.output_dir)


@pytest.fixture
def web(run: Run) -> TestClient:
    return client_of(run.workspace)


def answer(reply: Any) -> dict[str, Any]:
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def failed(reply: Any, status_code: int, code: str) -> None:
    assert (reply.status_code, reply.json()["error_code"]) == (status_code, code), reply.text


def names(web: TestClient, query: str = "") -> list[str]:
    return [item["name"] for item in answer(web.get(f"/api/runs{query}"))["runs"]]


def test_runs_are_listed_newest_first_by_phase_and_type_in_pages(web: TestClient, run: Run) -> None:
    others = [create_run(run.workspace, tiny_recipe(), 64, phase="stopped") for _ in range(3)]
    everything = names(web)
    assert everything == [item.name for item in list_runs(run.workspace)]
    assert names(web, "?phase=completed") == [run.name]
    assert set(names(web, "?phase=stopped")) == {other.name for other in others}
    assert names(web, "?type=ift") == []
    page = answer(web.get("/api/runs?limit=2&offset=1"))
    assert [item["name"] for item in page["runs"]] == everything[1:3]
    assert page["total"] == 4
    for wrong in ("?phase=none", "?type=x", "?limit=0", "?offset=-1", "?limit=nan"):
        failed(web.get(f"/api/runs{wrong}"), 400, "INVALID_REQUEST")


def test_a_run_is_found_by_name_and_by_id(web: TestClient, run: Run) -> None:
    by_name = answer(web.get(f"/api/runs/{run.name}"))
    assert answer(web.get(f"/api/runs/{run.record().training_id}")) == by_name
    assert by_name["state"] == run.state().model_dump()
    assert by_name["record"] == run.record().model_dump(mode="json")
    assert by_name["best_checkpoints"] == [item["iteration"] for item in by_name["checkpoints"]]
    assert by_name["run"]["num_checkpoints"] == 3
    assert by_name["performance"]["trained_tokens"] > 0
    assert str(run.workspace.root) not in web.get(f"/api/runs/{run.name}").text


@pytest.mark.parametrize("name", ["none", "..", "%2e%2e", "a%00b", "%ff", "~", "%2Fetc"])
def test_what_is_no_run_is_not_found(web: TestClient, name: str) -> None:
    for reply in (
        web.get(f"/api/runs/{name}/log"),
        web.get(f"/api/runs/{name}/metrics"),
        web.post(f"/api/runs/{name}/resume"),
        web.post(f"/api/runs/{name}/rename", json={"name": "x"}),
        web.delete(f"/api/queue/{name}"),
    ):
        assert (reply.status_code, reply.json()["success"]) == (404, False)


def test_metrics_can_be_followed_by_offset_and_by_number(web: TestClient, run: Run) -> None:
    url = f"/api/runs/{run.name}/metrics"
    lines = [json.loads(line) for line in (run.folder / METRICS_NAME).read_text().splitlines()]
    everything = answer(web.get(url))
    assert everything["metrics"] == lines
    assert everything["has_more"] is False
    assert answer(web.get(f"{url}?since_seq=10"))["metrics"] == lines[10:]
    with MetricsWriter(run.folder) as metrics:
        metrics.append(iteration=13, training_loss=float("nan"), learning_rate=1e-3)
    (new,) = answer(web.get(f"{url}?offset={everything['next_offset']}"))["metrics"]
    assert (new["iteration"], new["training_loss"], new["non_finite"]) == (13, None, True)
    beyond = answer(web.get(f"{url}?offset=999999999"))
    assert (beyond["metrics"], beyond["next_offset"]) == ([], 999999999)


def test_a_long_log_of_metrics_comes_in_pieces_without_a_gap(web: TestClient, run: Run) -> None:
    with MetricsWriter(run.folder) as metrics:
        for iteration in range(13, 8013):
            metrics.append(iteration=iteration, training_loss=2.0, learning_rate=1e-3)
    seen: list[int] = []
    reply: dict[str, Any] = {"next_offset": 0, "has_more": True}
    while reply["has_more"]:
        url = f"/api/runs/{run.name}/metrics?since_seq=5&offset={reply['next_offset']}"
        reply = answer(web.get(url))
        assert len(reply["metrics"]) < 6000
        seen += [line["seq"] for line in reply["metrics"]]
    assert seen == list(range(6, 8014))


def test_log_tail_is_the_end_of_the_log(web: TestClient, run: Run) -> None:
    lines = run.log_file.read_text().splitlines()
    shown = answer(web.get(f"/api/runs/{run.name}/log?lines=2"))["lines"]
    assert shown == [json.loads(line) for line in lines[-2:]]
    run.log_file.unlink()
    assert answer(web.get(f"/api/runs/{run.name}/log"))["lines"] == []


def test_log_shows_no_traceback_and_no_path_of_this_machine(web: TestClient, run: Run) -> None:
    root = run.workspace.root
    with run.log_file.open("a") as log:
        log.write(
            f"Traceback (most recent call last):\n"
            f'  File "{root}/x.py", line 3, in f\n    boom()\n'
            f"OSError: cannot open '/usr/lib/python3/os.py' or {root}/models/cpt at 3/4 of https://x.org/y\n"
        )
        entry = {"timestamp": "t", "level": "error", "message": f"in {root}/dataset/a", "traceback": "T"}  # fmt: skip
        log.write(json.dumps(entry) + "\n" + "[1, 2]\n" + '"torn')
    shown = answer(web.get(f"/api/runs/{run.name}/log?lines=4"))["lines"]
    assert [line["message"] for line in shown] == [
        "OSError: cannot open 'os.py' or models/cpt at 3/4 of https://x.org/y",
        "in dataset/a",
        "[1, 2]",
        '"torn',
    ]
    assert shown[1] == {"timestamp": "t", "level": "error", "message": "in dataset/a"}


def test_a_clone_is_the_recipe_with_other_values(web: TestClient, run: Run) -> None:
    url = f"/api/runs/{run.name}/clone"
    same = answer(web.post(url))
    assert same["cloned_from"] == run.name
    assert parse_recipe(same["recipe"]).resolved() == run.record().recipe
    other = answer(web.post(url, json={"overrides": {"learning_rate": 1e-4, "lora_rank": 8}}))
    recipe = parse_recipe(other["recipe"]).resolved()
    # What had followed from these follows the new values.
    assert (recipe.min_lr, recipe.lora_alpha) == (pytest.approx(1e-5), 16)
    assert recipe.warmup_steps == 2
    assert len(list_runs(run.workspace)) == 1
    failed(web.post(url, json={"overrides": {"batch_size": 0}}), 400, "INVALID_CONFIG")
    failed(web.post(url, json={"overrides": {"none": 0}}), 400, "INVALID_CONFIG")
    failed(web.post(url, json={"batch_size": 4}), 400, "INVALID_REQUEST")


def test_a_webhooks_address_is_shown_without_its_secret_and_cloned_whole(
    web: TestClient, run: Run
) -> None:
    address = "https://hooks.example.org:8443/services/s3cret?key=s3cret"
    told = create_run(run.workspace, tiny_recipe(webhook_url=address), 64, phase="queued")
    details = answer(web.get(f"/api/runs/{told.name}"))
    dashboard = answer(web.get(f"/api/dashboard/data?training_dir={told.name}"))
    compared = answer(web.get(f"/api/compare?runs={run.name},{told.name}"))
    shown = "https://hooks.example.org:8443"
    assert details["record"]["recipe"]["webhook_url"] == shown
    assert dashboard["training_config"]["webhook_url"] == shown
    assert compared["differences"]["webhook_url"] == [None, shown]
    paths = ("runs", "queue", "training/status", f"checkpoints?training_dir={told.name}")
    for reply in (
        details,
        dashboard,
        compared,
        *(web.get(f"/api/{path}").json() for path in paths),
    ):
        assert reply["success"] and "s3cret" not in json.dumps(reply)
    assert told.record().recipe.webhook_url == address
    cloned = answer(web.post(f"/api/runs/{told.name}/clone"))["recipe"]
    assert cloned["webhook_url"] == address


def test_a_cloned_recipe_starts(web: TestClient, run: Run) -> None:
    overrides = {"max_iterations": 100_000, "queue": True}
    with RunLock(run.folder).acquire():  # so that the new one waits instead of training
        recipe = answer(
            web.post(f"/api/runs/{run.name}/clone", json={"overrides": overrides})
        )["recipe"]  # fmt: skip
        started = answer(web.post("/api/training/start", json=recipe))
    assert started["message"] == "Training queued"


def test_a_renamed_run_keeps_its_id_and_its_checkpoints(web: TestClient, run: Run) -> None:
    before = answer(web.get(f"/api/runs/{run.name}"))
    url = f"/api/runs/{run.name}/rename"
    for wrong in ("", "../x", "a/b", ".hidden", "a\nb", "x" * 202, "-x", "x."):
        failed(web.post(url, json={"name": wrong}), 400, "INVALID_REQUEST")
    failed(web.post(url, json={"name": run.name}), 409, "CONFLICT")
    renamed = answer(web.post(url, json={"name": "handbook-1"}))
    assert renamed["output_dir"] == "models/cpt/handbook-1"
    after = answer(web.get("/api/runs/handbook-1"))
    assert after["run"]["training_id"] == before["run"]["training_id"]
    assert after["record"]["name"] == "handbook-1"
    assert len(after["checkpoints"]) == len(before["checkpoints"])
    failed(web.get(f"/api/runs/{run.name}"), 404, "RUN_NOT_FOUND")


def test_a_deleted_run_is_in_the_trash_until_restored(web: TestClient, run: Run) -> None:
    before = answer(web.get(f"/api/runs/{run.name}"))
    in_trash = answer(web.delete(f"/api/runs/{run.name}"))["name"]
    assert names(web) == []
    failed(web.get(f"/api/runs/{run.name}"), 404, "RUN_NOT_FOUND")
    failed(
        web.post("/api/training/resume", json={"output_dir": f"models/.trash/{in_trash}"}),
        404,
        "RUN_NOT_FOUND",
    )
    (item,) = answer(web.get("/api/trash"))["trash"]
    assert (item["name"], item["original_name"]) == (in_trash, run.name)
    assert item["size_mb"] > 0
    restored = answer(web.post("/api/trash/restore", json={"name": in_trash}))
    assert restored["output_dir"] == run.output_dir
    assert answer(web.get(f"/api/runs/{run.name}")) == before
    assert answer(web.get("/api/trash"))["trash"] == []
    failed(web.post("/api/trash/restore", json={"name": in_trash}), 404, "RUN_NOT_FOUND")


def test_a_deleted_checkpoint_is_gone_and_the_best_of_the_others_takes_its_place(
    web: TestClient, run: Run
) -> None:
    best, *others = answer(web.get(f"/api/runs/{run.name}"))["checkpoints"]
    route = f"/api/runs/{run.name}/checkpoints"
    with RunLock(run.folder).acquire():
        failed(web.delete(f"{route}/{best['iteration']}"), 409, "RUN_BUSY")
    later = run.record().recipe.model_copy(
        update={"base_run": f"{run.record().training_id}@{best['iteration']}"}
    )
    dependent = create_run(run.workspace, later, 64)
    failed(web.delete(f"{route}/{best['iteration']}"), 409, "CONFLICT")
    shutil.rmtree(dependent.folder)
    answer(web.delete(f"{route}/{best['iteration']}"))
    failed(web.delete(f"{route}/{best['iteration']}"), 404, "CHECKPOINT_NOT_FOUND")
    left = answer(web.get(f"/api/runs/{run.name}"))["checkpoints"]
    assert [item["iteration"] for item in left] == [item["iteration"] for item in others]
    link = run.folder / "adapters.safetensors"
    assert link.resolve().name == left[0]["path"].split("/")[-1] if left else not link.exists()


def test_a_run_without_probes_has_measured_nothing(web: TestClient, run: Run) -> None:
    found = answer(web.get(f"/api/runs/{run.name}/evaluations"))
    assert (found["evaluations"], found["samples"]) == ([], [])


def test_a_restore_takes_nobodys_place(web: TestClient, run: Run) -> None:
    web.delete(f"/api/runs/{run.name}")
    shutil.copytree(run.workspace.models / ".trash" / run.name, run.folder)
    failed(web.post("/api/trash/restore", json={"name": run.name}), 409, "CONFLICT")
    again = answer(web.delete(f"/api/runs/{run.name}"))["name"]
    assert again == f"{run.name}_2"
    assert answer(web.post("/api/trash/restore", json={"name": again}))["name"] == run.name


def test_the_emptied_trash_gives_the_room_back(web: TestClient, run: Run) -> None:
    outside = run.workspace.root / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    web.delete(f"/api/runs/{run.name}")
    (run.workspace.models / ".trash" / "link").symlink_to(outside)
    found = answer(web.delete("/api/trash"))
    assert found["deleted"] == 1 and found["freed_mb"] > 0
    assert not (run.workspace.models / ".trash" / run.name).exists()
    assert (outside / "kept.txt").exists()
    assert answer(web.delete("/api/trash"))["deleted"] == 0


def test_a_run_that_trains_or_waits_is_left_alone(web: TestClient, run: Run) -> None:
    def all_refused() -> None:
        failed(web.delete(f"/api/runs/{run.name}"), 409, "RUN_BUSY")
        failed(web.post(f"/api/runs/{run.name}/rename", json={"name": "x"}), 409, "RUN_BUSY")

    with RunLock(run.folder).acquire():
        all_refused()
    run.write_state(RunState(phase="queued"))
    all_refused()
    assert run.folder.is_dir()


def test_of_many_that_delete_a_run_one_succeeds(web: TestClient, run: Run) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: web.delete(f"/api/runs/{run.name}"), range(8)))
    codes = sorted(reply.status_code for reply in replies)
    assert codes[0] == 200 and set(codes[1:]) <= {404, 409}
    assert len(answer(web.get("/api/trash"))["trash"]) == 1


def test_a_stopped_run_is_resumed_by_name(web: TestClient, run: Run) -> None:
    """With a real trainer, which finds nothing left to do and ends."""
    run.write_state(run.state().model_copy(update={"phase": "stopped"}))
    found = answer(web.post(f"/api/runs/{run.name}/resume"))
    assert found["training_id"] == run.record().training_id
    eventually(lambda: run.state().phase == "completed")
    eventually(lambda: not run.is_alive())


def test_an_unfinished_run_without_checkpoints_cannot_be_resumed(web: TestClient, run: Run) -> None:
    other = create_run(run.workspace, tiny_recipe(), 64, phase="stopped")
    failed(web.post(f"/api/runs/{other.name}/resume"), 404, "CHECKPOINT_NOT_FOUND")


def test_a_wrong_method_is_told_every_right_one(web: TestClient) -> None:
    for path in ("/api/runs/some-run", "/api/trash"):
        assert web.put(path).headers["allow"] == "DELETE, GET"


def test_a_model_is_deleted_once_no_run_waits_for_it(web: TestClient, run: Run) -> None:
    model = run.workspace.base_models / "tiny"
    shutil.copytree(model, run.workspace.published_models / "a b")
    waiting = create_run(run.workspace, tiny_recipe(), 64, phase="queued")
    failed(web.delete("/api/models/base/tiny"), 409, "CONFLICT")
    waiting.write_state(RunState(phase="stopped"))
    assert answer(web.delete("/api/models/published/a%20b"))["freed_mb"] > 0
    assert answer(web.delete("/api/models/base/tiny"))["model_name"] == "base/tiny"
    assert not model.exists()
    for name in ("base/tiny", "base", "..", "%2E%2E%2Fother", ""):
        assert web.delete(f"/api/models/{name}").status_code in (404, 405)
    failed(web.delete(f"/api/models/{run.folder.parent.name}/{run.name}"), 404, "MODEL_NOT_FOUND")
