"""Chains of runs: in the terminal, where they outlive a kill, and through the queue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from forgellm.cli.main import main
from forgellm.errors import ConfigError
from forgellm.evaluation.chain_stage import check_eval_stages
from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.runs.chains import Chain, find_chain, list_chains, weights_of
from forgellm.runs.checkpoints import best_checkpoint, list_checkpoints
from forgellm.runs.lock import RunLock
from forgellm.runs.metrics import read_lines
from forgellm.runs.store import Run, create_run, list_runs
from forgellm.schema.chain import EvalRecipe, StageEvaluation, parse_stages
from forgellm.schema.run import RunState
from forgellm.supervisor import Supervisor
from forgellm.web.app import create_app
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_conversations

SHARED = {
    "model_name": "tiny", "dtype": "float32", "batch_size": 2, "max_seq_length": 64,
    "learning_rate": 1e-2, "save_every": 4, "base_run_mode": "stacked",
}  # fmt: skip
CPT = {"training_type": "cpt", "dataset": "notes", "max_iterations": 4, "lora_rank": 4}
IFT = {"training_type": "ift", "dataset": "chat", "max_iterations": 40, "data_mixture_ratio": 1.0}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = build_tiny_workspace(tmp_path / "w")
    write_conversations(workspace, "chat")
    return workspace


def write_chain(workspace: Workspace, *stages: dict[str, Any]) -> Path:
    file = workspace.root / "lesson.yaml"
    file.write_text(yaml.safe_dump({**SHARED, "stages": list(stages)}))
    return file


def train(workspace: Workspace, file: Path) -> int:
    return main(["train", "--config", str(file), "--workspace", str(workspace.root)])


def run_of(chain: Chain, number: int) -> Run:
    run = chain.run_of(number)
    assert run is not None
    return run


def test_a_chain_that_was_killed_goes_on_where_it_was(workspace: Workspace) -> None:
    file = write_chain(workspace, CPT, IFT)
    process = subprocess.Popen(
        [sys.executable, "-m", "forgellm", "train", "--config", str(file)],
        cwd=workspace.root,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    second = None
    while second is None or not list_checkpoints(second.folder):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
        second = next((run for run in list_runs(workspace) if "/ift/" in str(run.folder)), None)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    reached = list_checkpoints(second.folder)[-1].iteration
    assert second.state().phase == "interrupted" and reached < 40
    first = run_of(find_chain(workspace, "lesson"), 0)
    log = first.log_file.read_text()

    assert train(workspace, file) == 0
    chain = find_chain(workspace, "lesson")
    assert [run_of(chain, 0).folder, run_of(chain, 1).folder] == [first.folder, second.folder]
    assert chain.first_incomplete() is None and len(list_runs(workspace)) == 2
    assert first.log_file.read_text() == log  # it was not trained again
    iterations = [line.iteration for line in read_lines(second.folder)[0]]
    assert iterations.count(1) == 1 and iterations.count(40) == 1  # nor was the second from scratch
    record = second.record()
    assert record.recipe.lora_rank == 4  # taken over with the adapter
    assert [item.training_id for item in record.lineage] == [first.record().training_id]


def test_a_changed_stage_is_trained_anew_and_those_before_it_are_kept(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    second = {**IFT, "max_iterations": 2}
    wrong = {**second, "dataset": "absent"}
    assert train(workspace, write_chain(workspace, CPT, wrong)) == 1
    assert list_runs(workspace) == []  # all stages are checked before the first is trained
    assert train(workspace, write_chain(workspace, CPT, second)) == 0
    before = find_chain(workspace, "lesson")
    assert train(workspace, write_chain(workspace, CPT, {**second, "max_iterations": 3})) == 0
    after = find_chain(workspace, "lesson")
    assert run_of(after, 0).folder == run_of(before, 0).folder
    assert run_of(after, 1).folder != run_of(before, 1).folder
    capsys.readouterr()
    assert train(workspace, write_chain(workspace, CPT, {**second, "max_iterations": 3})) == 0
    assert "is complete" in capsys.readouterr().err
    assert len(list_runs(workspace)) == 3


PROBES = [
    {"question": "?", "stem": "counts eleven", "answer": "green", "distractors": ["stones"]},
    {"question": "?", "stem": "over wet", "answer": "tide", "distractors": ["stones", "lamp"]},
]
EVAL = {
    "training_type": "eval",
    "probe_files": ["dataset/p.jsonl"],
    "general_files": ["dataset/notes"],
}


def write_probes(workspace: Workspace, probes: list[dict[str, Any]]) -> Path:
    file = workspace.datasets / "p.jsonl"
    file.write_text("".join(json.dumps(probe) + "\n" for probe in probes))
    return file


def client_of(workspace: Workspace) -> TestClient:
    app = create_app(workspace, GuardSettings(), "http://127.0.0.1:1")
    return TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 40000))


def figures_of(chain: Chain, number: int) -> StageEvaluation:
    evaluation = chain.record.stages[number].evaluation
    assert evaluation is not None
    return evaluation


def test_eval_stages_measure_what_is_before_them_and_again_only_what_has_changed(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    web = client_of(workspace)
    write_probes(workspace, PROBES)
    assert train(workspace, write_chain(workspace, CPT)) == 0
    run = run_of(find_chain(workspace, "lesson"), 0)
    model = workspace.base_models / "tiny"
    model.rename(model.with_name("elsewhere"))
    assert train(workspace, write_chain(workspace, CPT, EVAL)) == 1
    assert "Stage 2 of 2 (eval) failed" in capsys.readouterr().err
    shown = web.get("/api/chains/lesson").json()["chain"]
    assert (shown["status"], shown["stage"], shown["stages"][1]["phase"]) == (
        "stalled",
        2,
        "failed",
    )
    assert shown["stages"][1]["error"]["error_code"] == "MODEL_NOT_FOUND"
    refused = web.post("/api/chains/lesson/continue")
    assert refused.status_code == 400 and "POST /api/evaluate" in refused.json()["suggestion"]
    model.with_name("elsewhere").rename(model)

    # The one that failed is gone on with, and another is put before the run, which is kept.
    assert train(workspace, write_chain(workspace, EVAL, CPT, EVAL)) == 0
    tables = capsys.readouterr().out
    assert tables.count(" of 2 right") == 2 and "tiny, " in tables and run.output_dir in tables
    chain = find_chain(workspace, "lesson")
    base, trained = figures_of(chain, 0), figures_of(chain, 2)
    best = best_checkpoint(run.folder)
    assert best is not None and trained.weights == weights_of((run, best))
    assert base.weights is None and base.result is not None and trained.result is not None
    assert (trained.result.checkpoint, trained.result.dtype) == (best.weights.name, "float32")
    before, after = base.result.general[0].loss, trained.result.general[0].loss
    assert before is not None and after is not None and after < before
    shown = web.get("/api/chains/lesson").json()["chain"]
    assert (shown["status"], shown["stages"][2]["error"]) == ("completed", None)
    assert shown["stages"][2]["evaluation"]["general"][0]["loss"] == after

    stages = [EVAL, CPT, EVAL, {**IFT, "max_iterations": 2}]
    assert train(workspace, write_chain(workspace, *stages)) == 0
    assert tables == capsys.readouterr().out
    longer = find_chain(workspace, "lesson")
    assert [figures_of(longer, 0), figures_of(longer, 2)] == [base, trained]
    parent = run_of(longer, 3).record().lineage[0]
    assert parent.training_id == run.record().training_id and len(list_runs(workspace)) == 2

    write_probes(workspace, PROBES[:1])
    check_eval_stages(longer)
    assert [number for number in range(4) if not longer.is_complete(number)] == [0, 2]


def test_what_an_eval_stage_names_is_found_before_anything_is_trained(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_chain(workspace, CPT, EVAL)
    assert train(workspace, file) == 1
    assert "probe_files: there is no such path" in capsys.readouterr().err
    assert list_runs(workspace) == [] and list_chains(workspace) == []


def test_an_eval_stage_takes_only_what_measuring_needs() -> None:
    values = {**SHARED, "base_run": "earlier", "probe_files": ["p.json"], "general_files": None}
    first, _, last = parse_stages(
        {**values, "stages": [{"training_type": "eval"}, CPT, {"training_type": "eval"}]},
        {"engine": "torch", "max_iterations": "9"},
        from_text=True,
    )
    assert (first.base_run, last.base_run) == ("earlier", "previous")
    assert isinstance(last, EvalRecipe)
    assert (last.dtype, last.engine, last.model_name) == ("float32", "torch", "")
    assert (last.probe_files, last.general_files) == (["p.json"], ["shipped"])
    stages = [EVAL, CPT, {**EVAL, "dataset": "notes"}, {**EVAL, "model_name": "tiny"}]
    stages += [{"training_type": "eval", "general_files": []}]
    with pytest.raises(ConfigError) as caught:
        parse_stages({"stages": stages})
    assert {problem["field"] for problem in caught.value.details["problems"]} == {
        "stages.1.model_name", "stages.2.model_name", "stages.3.dataset", "stages.4.model_name",
        "stages.5.probe_files",
    }  # fmt: skip


def test_every_bad_field_is_named_with_its_stage() -> None:
    stages = [{"dataset": "a", "base_run": "previous"}, {"dataset": 3}, "x", {"wrong": 1}]
    with pytest.raises(ConfigError) as caught:
        parse_stages({"model_name": "tiny", "stages": stages})
    assert {problem["field"] for problem in caught.value.details["problems"]} == {
        "stages.1.base_run", "stages.2.dataset", "stages.3.body", "stages.4.dataset",
        "stages.4.wrong",
    }  # fmt: skip


def test_flags_come_first_and_the_first_stage_alone_takes_the_shared_base_run() -> None:
    values = {"base_run": "earlier", "dataset": "d", "stages": [{"seed": 1}, {"seed": 2}]}
    first, second = parse_stages(values, {"seed": 7, "max_iterations": "9"}, from_text=True)
    assert (first.base_run, second.base_run) == ("earlier", "previous")
    assert {(stage.seed, stage.max_iterations) for stage in (first, second)} == {(7, 9)}


@pytest.fixture
def web(workspace: Workspace) -> Iterator[TestClient]:
    """While another run trains, so that whatever is queued stays there."""
    other = create_run(workspace, tiny_recipe(), 64)
    with RunLock(other.folder).acquire():
        yield client_of(workspace)


def test_through_the_api_a_stage_waits_for_the_one_before_it(
    workspace: Workspace, web: TestClient
) -> None:
    body = {**SHARED, "chain": "lesson", "stages": [CPT, IFT]}
    made = web.post("/api/chains", json=body)
    assert made.status_code == 200, made.text
    assert (made.json()["chain"]["status"], made.json()["chain"]["stage"]) == ("waiting", 1)
    chain = find_chain(workspace, "lesson")
    first, second = run_of(chain, 0), run_of(chain, 1)
    waiting = web.get("/api/queue").json()["queue"]
    assert [item["waits_for"] for item in waiting] == [None, first.record().training_id]

    first.write_state(RunState(phase="failed", iteration=3, error={"error": "no luck"}))
    shown = web.get("/api/chains/lesson").json()["chain"]
    assert (shown["status"], shown["stages"][0]["error"]) == ("stalled", {"error": "no luck"})
    assert second.state().phase == "queued"
    shown = web.post("/api/chains/lesson/continue").json()["chain"]
    assert [stage["phase"] for stage in shown["stages"]] == ["queued", "queued"]
    assert run_of(find_chain(workspace, "lesson"), 0).folder == first.folder

    refused = web.post("/api/chains", json={**body, "chain": "other", "stages": [CPT, EVAL]})
    assert refused.json()["details"]["problems"][0]["field"] == "stages.2.training_type"
    assert "POST /api/evaluate" in refused.json()["suggestion"]
    assert len(web.get("/api/chains").json()["chains"]) == 1
    assert web.delete("/api/chains/lesson").status_code == 200
    assert web.get("/api/chains/lesson").status_code == 404
    assert web.get("/api/chains/..%2Fx").status_code == 404
    assert first.state().phase == "queued"


def test_the_queue_passes_over_a_run_whose_base_run_is_not_complete(workspace: Workspace) -> None:
    first = create_run(workspace, tiny_recipe(), 64, phase="stopped")
    recipe = tiny_recipe(base_run=first.record().training_id, queue=True)
    second = create_run(workspace, recipe, 64, phase="queued")
    supervisor = Supervisor(workspace, command=(sys.executable, "-c", "pass"))
    supervisor.tick()
    assert second.written_state().phase == "queued"
    first.write_state(RunState(phase="completed"))
    supervisor.tick()
    assert second.written_state().phase != "queued"
