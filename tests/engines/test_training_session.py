"""Whole runs in this process, on a tiny model: what is trained, kept, reported and refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from forgellm import hardware, supervisor
from forgellm.data.prepare import prepare_data
from forgellm.data.prepared import PreparedData
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import (
    CheckpointNotFound,
    ConfigError,
    DataError,
    DatasetNotFound,
    DiskTooSmall,
    DoesNotFit,
    ForgeError,
    NonFiniteLoss,
    UnsupportedModel,
)
from forgellm.paths import Workspace
from forgellm.runs import checkpoints
from forgellm.runs.metrics import effective, read_lines
from forgellm.runs.store import Run, latest_run
from forgellm.schema.run import MetricsLine, RunState
from forgellm.training.session import Session
from tiny_workspace import MEMORISING, build_tiny_workspace, tiny_recipe, write_unlike_notes

DEFAULTS: dict[str, Any] = {}


@pytest.fixture(params=["torch", "mlx"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every run of this file is trained by each engine."""
    monkeypatch.setitem(DEFAULTS, "engine", request.param)
    return str(request.param)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_tiny_workspace(tmp_path / "w")


def train(
    workspace: Workspace, session: Session | None = None, **fields: Any
) -> tuple[Run, RunState]:
    run, lock = supervisor.claim_new_run(
        workspace, tiny_recipe(**{**DEFAULTS, **fields}), max_seq_length=64
    )
    with lock:
        return run, (session or Session()).train(run)


def resume(workspace: Workspace, run: Run) -> RunState:
    with supervisor.claim_resume(workspace, run):
        return Session().train(run, resume=True)


def weights(checkpoint: checkpoints.Checkpoint) -> dict[str, Any]:
    file = checkpoint.weights
    file = file / "model.safetensors" if file.is_dir() else file
    return {name: value.tobytes() for name, value in safetensors.numpy.load_file(file).items()}


def stop_after(iteration: int) -> Session:
    session = Session()

    def observe(line: MetricsLine, state: RunState) -> None:
        session.stop = line.iteration >= iteration

    session.observer = observe
    return session


def test_a_run_learns_and_leaves_a_complete_record(workspace: Workspace, engine: str) -> None:
    run, state = train(workspace, max_iterations=30, save_every=10)
    assert state.phase == "completed" == run.state().phase
    lines = effective(read_lines(run.folder)[0])
    validations = [x.validation_loss for x in lines if x.validation_loss is not None]
    assert [x.iteration for x in lines if x.validation_loss is not None] == [0, 10, 20, 30]
    assert validations[-1] < 0.9 * validations[0]
    assert lines[-1].training_loss < lines[1].training_loss
    assert lines[-1].trained_tokens == sum(
        prepared(workspace, run).batch(i).num_targets for i in range(30)
    )
    assert all(x.tokens_per_second > 0 and x.memory_usage_gb > 0 for x in lines[1:])
    record = run.record()
    assert record.engine == engine
    assert record.dtype == "float32"
    assert record.recipe.max_seq_length == 64
    assert record.model["num_trainable"] > 0
    assert record.data["fingerprint"]
    assert record.versions[engine]
    assert record.memory["measured_gb"] > 0
    assert math.isfinite(record.memory["estimate_error"])
    assert json.loads((run.folder / "adapter_config.json").read_text())["r"] == 4


def prepared(workspace: Workspace, run: Run) -> PreparedData:
    tokenizer = Tokenizer.load(workspace.base_models / "tiny")
    return prepare_data(run.record().recipe, workspace, tokenizer, 64)


@pytest.mark.parametrize("fine_tune_type", ["lora", "dora", "full"])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(
    workspace: Workspace, fine_tune_type: str
) -> None:
    fields = {"fine_tune_type": fine_tune_type, "lora_dropout": 0.1, "grad_accum_steps": 2}
    whole, _ = train(workspace, **fields)
    parted, state = train(workspace, stop_after(6), **fields)
    assert (state.phase, state.iteration) == ("stopped", 6)
    assert resume(workspace, parted).phase == "completed"
    ends = [checkpoints.find_checkpoint(run.folder, 12) for run in (whole, parted)]
    assert weights(ends[0]) == weights(ends[1])
    assert ends[0].validation_loss == ends[1].validation_loss
    curves = [effective(read_lines(run.folder)[0]) for run in (whole, parted)]
    for one, two in zip(*curves, strict=True):
        same = ("iteration", "training_loss", "validation_loss", "trained_tokens", "grad_norm")
        assert [getattr(one, f) for f in same] == [getattr(two, f) for f in same]


def test_resume_passes_over_a_damaged_checkpoint(workspace: Workspace) -> None:
    whole, _ = train(workspace)
    run, _ = train(workspace, stop_after(9))
    newest = checkpoints.find_checkpoint(run.folder, 9)
    data = bytearray(newest.weights.read_bytes())
    data[-5] ^= 1
    newest.weights.write_bytes(data)
    assert resume(workspace, run).phase == "completed"
    ends = [checkpoints.find_checkpoint(r.folder, 12) for r in (whole, run)]
    assert weights(ends[0]) == weights(ends[1])


def test_a_checkpoint_reloads_to_the_same_validation_loss(workspace: Workspace) -> None:
    run, _ = train(workspace)
    data = prepared(workspace, run)
    for checkpoint in checkpoints.list_checkpoints(run.folder):
        engine = load_generate_engine(
            workspace.base_models / "tiny", checkpoint.weights, dtype="float32"
        )
        batches = list(data.validation_batches())
        total = sum(float(engine.token_log_probs(batch).sum()) for batch in batches)
        loss = -total / sum(batch.num_targets for batch in batches)
        assert loss == pytest.approx(checkpoint.validation_loss, rel=1e-5)


def test_pruning_keeps_the_best_three_and_the_last(workspace: Workspace) -> None:
    run, _ = train(workspace, max_iterations=20, save_every=2, max_checkpoints=4)
    kept = checkpoints.list_checkpoints(run.folder)
    assert len(kept) == 4
    assert max(c.iteration for c in kept) == 20
    lines = [x for x in effective(read_lines(run.folder)[0]) if x.validation_loss and x.iteration]
    best = sorted(lines, key=lambda x: (x.validation_loss, x.iteration))[:3]
    assert checkpoints.best_iterations(kept) == [x.iteration for x in best]


def test_a_diverging_run_stops_says_so_and_keeps_the_good_checkpoint(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import forgellm.training.loop as loop

    real = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda i, r: 1e30 if i > 5 else real(i, r))
    with pytest.raises(NonFiniteLoss):
        train(workspace, max_grad_norm=0)
    run = latest_run(workspace)
    assert run is not None
    state = run.state()
    assert state.phase == "failed"
    assert state.error is not None and state.error["error_code"] == "NON_FINITE_LOSS"
    assert read_lines(run.folder)[0][-1].non_finite
    checkpoint, damaged = checkpoints.newest_verified(run.folder)
    assert checkpoint is not None and checkpoint.iteration == 4 and not damaged


def test_early_stop_ends_a_run_that_only_memorises(workspace: Workspace) -> None:
    write_unlike_notes(workspace)
    run, state = train(workspace, **MEMORISING)
    assert state.stopped_early and state.phase == "completed"
    assert state.iteration < 200
    assert state.overfitting and state.overfitting_iteration is not None
    assert checkpoints.find_checkpoint(run.folder, state.iteration)


def test_a_stop_before_the_first_update_ends_cleanly(workspace: Workspace) -> None:
    run, lock = supervisor.claim_new_run(workspace, tiny_recipe(**DEFAULTS), max_seq_length=64)
    with lock:
        run.request_stop()
        assert Session().train(run).phase == "stopped"
    assert not checkpoints.list_checkpoints(run.folder)


def test_gradient_accumulation_trains_as_the_big_batch(workspace: Workspace) -> None:
    big, _ = train(workspace, batch_size=4, data_mixture_ratio=1.0)
    small, _ = train(workspace, batch_size=1, grad_accum_steps=4, data_mixture_ratio=1.0)
    losses = [
        [x.training_loss for x in effective(read_lines(r.folder)[0]) if x.training_loss]
        for r in (big, small)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_replay_text_is_mixed_in_and_measured(workspace: Workspace) -> None:
    run, _ = train(workspace, data_mixture_ratio=0.5)
    assert run.record().data["achieved_mixture_ratio"] == 0.5
    assert run.record().data["replay_source"] == "shipped"


def test_a_resumed_run_needs_no_dataset(workspace: Workspace) -> None:
    run, _ = train(workspace, stop_after(5))
    shutil.rmtree(workspace.datasets)
    assert resume(workspace, run).phase == "completed"


def test_a_vanished_dataset_without_cache_is_a_clear_error(workspace: Workspace) -> None:
    run, _ = train(workspace, stop_after(5))
    shutil.rmtree(workspace.datasets)
    shutil.rmtree(workspace.cache)
    with pytest.raises(DatasetNotFound):
        resume(workspace, run)
    assert run.state().phase == "failed"
    checkpoint, _ = checkpoints.newest_verified(run.folder)
    assert checkpoint is not None and checkpoint.iteration == 5


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"training_type": "ift"}, DataError),
        ({"dataset": "absent"}, DatasetNotFound),
        ({"lora_target": ["no_such_layer"]}, ConfigError),
    ],
)
def test_what_cannot_work_fails_before_training(
    workspace: Workspace, fields: dict[str, Any], error: type[ForgeError]
) -> None:
    with pytest.raises(error):
        train(workspace, **fields)
    run = latest_run(workspace)
    assert run is not None
    assert run.state().phase == "failed"
    assert not (run.folder / "metrics.jsonl").exists()


def test_an_engine_that_is_not_installed_is_a_wrong_field(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "engine_is_installed", lambda name: name == "torch")
    with pytest.raises(ConfigError, match=r"engine: mlx is not installed.*forgellm\[mlx\]"):
        train(workspace, engine="mlx")


def test_a_recipe_beyond_memory_names_what_would_fit(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "training_memory_bytes", lambda: 700_000_000)
    with pytest.raises(DoesNotFit) as caught:
        train(workspace, batch_size=4096, max_seq_length=512)
    assert "batch_size" in caught.value.suggestion
    assert "grad_checkpoint" in caught.value.suggestion
    assert caught.value.details["estimate"]["total_gb"] > 0.7


def test_a_disk_too_small_for_the_checkpoints_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "disk_free_bytes", lambda folder: 1000)
    with pytest.raises(DiskTooSmall):
        train(workspace)


def test_the_torch_engine_refuses_weights_quantised_in_another_format(workspace: Workspace) -> None:
    file = workspace.base_models / "tiny" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UnsupportedModel, match="quantised"):
        train(workspace, engine="torch")


def test_resume_without_a_checkpoint_is_refused(workspace: Workspace) -> None:
    run, lock = supervisor.claim_new_run(workspace, tiny_recipe(**DEFAULTS), max_seq_length=64)
    lock.release()
    with pytest.raises(CheckpointNotFound):
        resume(workspace, run)
