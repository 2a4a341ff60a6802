"""Runs on pairs, as anyone starts them: what they learn, how they go on, what becomes of them."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import safetensors.numpy

from forgellm import supervisor
from forgellm.errors import CheckpointCorrupt
from forgellm.generation.loading import find_source, open_source
from forgellm.generation.prompt import build_prompt
from forgellm.generation.session import Done, answer
from forgellm.paths import Workspace
from forgellm.publishing import build
from forgellm.runs import checkpoints
from forgellm.runs.metrics import effective, read_lines
from forgellm.runs.store import Run
from forgellm.schema.generation import LoadRequest, Sampling
from forgellm.schema.run import MetricsLine
from forgellm.training.session import Session
from preference_pairs import write_preferences
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_conversations

GREEDY = Sampling(temperature=0, max_tokens=12, repetition_penalty=1.0)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = build_tiny_workspace(tmp_path / "w", num_documents=1)
    write_preferences(workspace, "pairs")
    return workspace


def train(workspace: Workspace, session: Session | None = None, **fields: Any) -> Run:
    values = {"training_type": "dpo", "dataset": "pairs", **fields}
    recipe = tiny_recipe(**{"max_seq_length": 96, **values})
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=96)
    with lock:
        (session or Session()).train(run)
    return run


def lines_of(run: Run) -> list[MetricsLine]:
    return effective(read_lines(run.folder)[0])


@pytest.mark.parametrize(("engine", "method"), [("torch", "dpo"), ("mlx", "dpo"), ("mlx", "orpo")])
def test_a_run_learns_to_prefer(workspace: Workspace, engine: str, method: str) -> None:
    run = train(
        workspace, engine=engine, training_type=method, max_iterations=14, save_every=14,
        learning_rate=3e-2, preference_beta=1.0,
    )  # fmt: skip
    assert run.folder.parent.name == method
    lines = lines_of(run)
    validated = [line.validation_loss for line in lines if line.validation_loss is not None]
    if method == "dpo":
        assert validated[0] == pytest.approx(math.log(2), abs=1e-4)
    assert validated[-1] < 0.97 * validated[0]
    reports = lines[1:]
    accuracies, margins = (
        [[getattr(line, name) for line in part] for part in (reports[:3], reports[-5:])]
        for name in ("reward_accuracy", "reward_margin")
    )
    assert fmean(accuracies[0]) < 0.75 < fmean(accuracies[1])
    assert fmean(margins[0]) < fmean(margins[1])
    assert all(line.chosen_log_prob is not None and line.chosen_log_prob < 0 for line in reports)
    assert lines[0].reward_accuracy is None


def test_a_resumed_run_ends_with_the_same_bits(workspace: Workspace) -> None:
    """It compares with the adapter that it began with: neither with the bare model, nor with the
    weights that are resumed, and also where the base run is gone by then."""
    write_conversations(workspace, "chat")
    base = train(workspace, training_type="ift", dataset="chat", data_mixture_ratio=1.0)
    session = Session()
    session.observer = lambda line, state: setattr(session, "stop", line.iteration >= 6)
    fields = {"base_run": base.output_dir, "base_run_mode": "stacked"}
    whole, parted = train(workspace, **fields), train(workspace, session, **fields)
    shutil.rmtree(base.folder)
    with supervisor.claim_resume(workspace, parted):
        assert Session().train(parted, resume=True).phase == "completed"
    ends = [
        safetensors.numpy.load_file(checkpoints.find_checkpoint(run.folder, 12).weights)
        for run in (whole, parted)
    ]
    assert all((ends[0][key] == ends[1][key]).all() for key in ends[0])
    losses = [[line.validation_loss for line in lines_of(run)] for run in (whole, parted)]
    assert losses[0] == losses[1]
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-4)
    reference = parted.folder / "reference.safetensors"
    (checkpoints.list_checkpoints(parted.folder)[-1].folder / "manifest.json").unlink()
    content = bytearray(reference.read_bytes())
    content[-1] ^= 1
    reference.write_bytes(content)
    with supervisor.claim_resume(workspace, parted), pytest.raises(CheckpointCorrupt):
        Session().train(parted, resume=True)
    reference.write_bytes(b"short")
    with supervisor.claim_resume(workspace, parted), pytest.raises(CheckpointCorrupt):
        Session().train(parted, resume=True)


def test_a_checkpoint_answers_and_is_published(workspace: Workspace) -> None:
    run = train(workspace, max_iterations=4)
    request = LoadRequest(model_name="tiny", adapter_path=run.output_dir, dtype="float32")
    model, tokenizer = open_source(find_source(request, workspace))
    ids = build_prompt(tokenizer, "After stones?", [], is_base_model=None)
    *_, done = answer(model, tokenizer, ids, GREEDY)
    assert isinstance(done, Done)
    best = checkpoints.best_checkpoint(run.folder)
    assert best is not None
    published = build.build_published(run, best, lambda share, text: None)
    folder = workspace.root / published.published_model_path
    card = (folder / "README.md").read_text()
    assert "Preferences (DPO)" in card and "nats per token" not in card
    assert (folder / "training_dashboard.png").stat().st_size > 10_000


def test_full_training_compares_with_the_weights_it_began_with(workspace: Workspace) -> None:
    lines = lines_of(train(workspace, fine_tune_type="full", learning_rate=1e-3))
    losses = [line.validation_loss for line in lines if line.validation_loss is not None]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < losses[0]
