"""`replay: auto`: the share rises where a run forgets, and a resume meets the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from forgellm import supervisor
from forgellm.errors import ConfigError
from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.evaluations import read_evaluations
from forgellm.runs.store import Run
from forgellm.schema.evaluation import EvaluationLine, GeneralFigures
from forgellm.schema.run import MetricsLine, RunState
from forgellm.training.replay import ReplayRule
from forgellm.training.session import Session
from tiny_workspace import build_tiny_workspace, tiny_recipe


def line(iteration: int, *changes: float | None) -> EvaluationLine:
    general = [
        GeneralFigures(
            file=str(number), fingerprint="", num_documents=1, num_tokens=1, loss=1.0,
            standard_error=None, losses=[1.0], change=change,
        )
        for number, change in enumerate(changes)
    ]  # fmt: skip
    return EvaluationLine(iteration=iteration, probes=[], general=general, seconds=0, timestamp="")


def test_the_share_doubles_while_general_loss_rises_beyond_the_bound() -> None:
    rule = ReplayRule(0.1, 0.05, lambda is_so: is_so)
    seen = [(None,), (0.04, -1.0), (0.06, -1.0), (0.2, 0.0), (0.15, 0.0), (0.01,), (0.3,), (0.4,)]
    found = [rule.observe(line(number, *changes)) for number, changes in enumerate(seen)]
    assert found == [None, None, 0.2, 0.4, None, None, 0.5, None]


def test_a_run_without_replay_begins_with_some_and_all_processes_decide_alike() -> None:
    alone, together = (
        ReplayRule(0.0, 0.05, lambda is_so: is_so),
        ReplayRule(0.0, 0.05, lambda _: True),
    )
    assert alone.observe(line(1, 0.01)) is None
    assert together.observe(line(1, 0.01)) == alone.observe(line(2, 0.06)) == 0.05


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = build_tiny_workspace(tmp_path / "w")
    for name, text in [("general", "In spring the ice breaks. "), ("old", "The mill grinds rye. ")]:
        folder = workspace.datasets / name
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.txt").write_text(text * (30 + number))
    return workspace


def train(workspace: Workspace, stop_at: int | None = None, **fields: Any) -> Run:
    session = Session()

    def observe(report: MetricsLine, state: RunState) -> None:
        session.stop = session.stop or report.iteration == stop_at

    session.observer = observe
    recipe = tiny_recipe(
        replay="auto", replay_bound=1e-6, replay_dataset="old", general_files=["dataset/general"],
        data_mixture_ratio=0.9, learning_rate=0.03, allow_overlap=True, **fields,
    )  # fmt: skip
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=64)
    with lock:
        session.train(run)
    if stop_at is not None:
        with supervisor.claim_resume(workspace, run):
            Session().train(run, resume=True)
    return run


@pytest.mark.parametrize("engine", ["torch", "mlx"])
@pytest.mark.parametrize("stop_at", [4, 6])
def test_a_resumed_run_raises_replay_as_one_that_never_stopped(
    workspace: Workspace, engine: str, stop_at: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(workspace, engine=engine)
    assert any("from iteration 5 on, 16.7 %" in text for text in caplog.messages)
    shares = [(x.iteration, x.replay_share) for x in read_evaluations(whole.folder)]
    assert shares[:2] == [(0, None), (4, pytest.approx(0.166666, abs=1e-3))]  # 2 of 24 rows
    stopped = train(workspace, stop_at, engine=engine)
    assert [
        pair
        for pair in ((x.iteration, x.replay_share) for x in read_evaluations(stopped.folder))
        if pair[0] != 6
    ] == shares
    files = [checkpoints.find_checkpoint(run.folder, 12).weights for run in (whole, stopped)]
    one, other = (safetensors.numpy.load_file(file) for file in files)
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in other.items()}
    fixed = train(workspace, engine=engine, max_iterations=12, save_every=12)
    last = safetensors.numpy.load_file(checkpoints.find_checkpoint(fixed.folder, 12).weights)
    assert any(last[name].tobytes() != value.tobytes() for name, value in one.items())


def test_automatic_replay_needs_something_to_measure_by() -> None:
    with pytest.raises(ConfigError, match="general_files"):
        tiny_recipe(replay="auto", general_files=[])
