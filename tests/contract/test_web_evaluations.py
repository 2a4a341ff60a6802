"""What runs have measured of their models, as the web server shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.runs.checkpoints import write_checkpoint
from forgellm.runs.evaluations import (
    EVALUATIONS_NAME,
    SAMPLES_NAME,
    append_evaluation,
    read_evaluations,
    read_samples,
)
from forgellm.runs.metrics import MetricsWriter
from forgellm.runs.store import Run, create_run
from forgellm.schema.evaluation import EvaluationLine, SampleLine
from forgellm.schema.run import RunState
from forgellm.web.app import create_app
from forgellm.web.run_feed import RunFeed
from tiny_workspace import tiny_recipe


@pytest.fixture
def run(tmp_path: Path) -> Run:
    workspace = Workspace(tmp_path.resolve())
    workspace.runs("cpt").mkdir(parents=True)
    return create_run(workspace, tiny_recipe(), 64)


@pytest.fixture
def web(run: Run) -> TestClient:
    app = create_app(run.workspace, GuardSettings(), "http://127.0.0.1:1")
    return TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 40000))


def line(iteration: int, right: str = "01", losses: tuple[float, ...] = (2.0, 3.0)) -> Any:
    probes = {
        "file": "dataset/p.json",
        "fingerprint": "f",
        "num_probes": len(right),
        "accuracy": right.count("1") / len(right),
        "standard_error": 0.1,
        "accuracy_low": 0.0,
        "accuracy_high": 1.0,
        "confidence": 0.5,
        "right": right,
    }
    general = [
        {
            "file": f"g{number}",
            "fingerprint": "f",
            "num_documents": 1,
            "num_tokens": number * 100,
            "loss": loss,
            "standard_error": None,
            "losses": [loss],
        }
        for number, loss in enumerate(losses, 1)
    ]
    return EvaluationLine.model_validate(
        {
            "iteration": iteration,
            "probes": [probes],
            "general": general,
            "seconds": 1.0,
            "timestamp": f"2026-11-25T01:{iteration:02d}:00.000Z",
        }
    )


def said(iteration: int, prompt: str, answer: str = "a") -> SampleLine:
    return SampleLine(
        iteration=iteration, prompt=prompt, answer=answer, finish_reason="stop", timestamp="t"
    )


def write_weights(folder: Path, stem: str) -> None:
    (folder / f"{stem}_adapters.safetensors").write_bytes(b"x")


def test_checkpoints_are_ranked_by_what_they_know_or_have_forgotten(
    run: Run, web: TestClient
) -> None:
    for iteration, loss in [(4, 3.0), (8, 2.0), (12, 2.5), (16, 4.0)]:
        write_checkpoint(run.folder, iteration, loss, write_weights, lambda folder: None, {})
    append_evaluation(run.folder, line(4, "0001", (2.0, 2.0)), [])
    append_evaluation(run.folder, line(8, "0111", (2.0, 5.0)), [])
    append_evaluation(run.folder, line(12, "1110", (4.0, 2.5)), [])

    def order(**query: str) -> list[int]:
        reply = web.get("/api/checkpoints", params=query)
        assert reply.status_code == 200
        assert reply.json()["best_checkpoints"] == [
            item["iteration"] for item in reply.json()["checkpoints"][:3]
        ]
        return [item["iteration"] for item in reply.json()["checkpoints"]]

    assert order() == order(rank_by="validation_loss") == [8, 12, 4, 16]
    assert order(rank_by="probes") == [8, 12, 4, 16]  # 8 and 12 know as much; then 4; 16 unknown
    assert order(rank_by="general") == [4, 12, 8, 16]
    items = {item["iteration"]: item for item in web.get("/api/checkpoints").json()["checkpoints"]}
    assert items[12]["probe_accuracy"] == 0.75
    assert items[12]["general_loss"] == pytest.approx(3.0)  # each text counts by its tokens
    assert items[16]["probe_accuracy"] is None and items[16]["general_loss"] is None
    assert web.get("/api/checkpoints", params={"rank_by": "size"}).status_code == 400


def test_evaluations_and_samples_are_served_by_run_and_with_the_dashboard(
    run: Run, web: TestClient
) -> None:
    empty = web.get(f"/api/runs/{run.name}/evaluations").json()
    assert (empty["evaluations"], empty["samples"]) == ([], [])
    append_evaluation(run.folder, line(0), [said(0, "p", "before")])
    append_evaluation(run.folder, line(4), [said(4, "p", "after")])
    reply = web.get(f"/api/runs/{run.name}/evaluations").json()
    assert [item["iteration"] for item in reply["evaluations"]] == [0, 4]
    assert reply["evaluations"][0]["probes"][0]["right"] == "01"
    assert [item["answer"] for item in reply["samples"]] == ["before", "after"]
    dashboard = web.get("/api/dashboard/data").json()
    assert dashboard["evaluations"] == reply["evaluations"]
    assert dashboard["samples"] == reply["samples"]


def test_lines_that_were_done_again_count_once_and_torn_ones_not(run: Run) -> None:
    append_evaluation(run.folder, line(0), [said(0, "p"), said(0, "q")])
    append_evaluation(run.folder, line(4), [said(4, "p"), said(4, "q")])
    append_evaluation(run.folder, line(8), [said(8, "p")])
    with (
        (run.folder / EVALUATIONS_NAME).open("a") as log,
        (run.folder / SAMPLES_NAME).open("a") as samples,
    ):
        log.write("no line\n" + line(12).model_dump_json()[:-9])
        samples.write('{"iteration": 12')
    # Resumed from 4: the samples of 4 had been written, its evaluation had not.
    append_evaluation(run.folder, line(4, "11"), [said(4, "p", "b"), said(4, "q", "b")])
    append_evaluation(run.folder, line(8), [])
    assert [item.iteration for item in read_evaluations(run.folder)] == [0, 4, 8]
    assert read_evaluations(run.folder)[1].probes[0].right == "11"
    assert [(s.iteration, s.prompt, s.answer) for s in read_samples(run.folder)] == [
        (0, "p", "a"), (0, "q", "a"), (4, "p", "b"), (4, "q", "b"),
    ]  # fmt: skip


def test_each_new_evaluation_is_an_event_of_its_own_and_no_snapshot(run: Run) -> None:
    append_evaluation(run.folder, line(0), [])
    feed = RunFeed(run)
    assert feed.latest.name == "training_update" and feed.poll() == []
    late = {"timestamp": "2999-01-01T00:00:00.000Z"}
    append_evaluation(run.folder, line(4).model_copy(update=late), [])
    with MetricsWriter(run.folder) as metrics:
        metrics.append(iteration=4, training_loss=1.0)
    run.write_state(RunState(phase="completed", iteration=4, heartbeat="t"))
    names = [event.name for event in feed.poll()]
    assert names == ["evaluation_update", "training_update", "training_complete"]
    assert feed.latest.name == "training_complete"
    assert feed.poll() == []
