"""Runs that start from a checkpoint of an earlier run: merged into the model, or trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from forgellm import supervisor
from forgellm.engines.merged_model import model_of
from forgellm.engines.registry import load_fuse_engine, load_generate_engine
from forgellm.errors import CheckpointNotFound, ConfigError, Conflict, InvalidRequest, RunNotFound
from forgellm.generation.loading import base_model_of, find_source, open_source
from forgellm.paths import Workspace
from forgellm.publishing import build
from forgellm.runs.checkpoints import best_checkpoint, find_checkpoint, weights_sha256
from forgellm.runs.lineage import with_base_run
from forgellm.runs.manage import clone_recipe
from forgellm.runs.metrics import effective, read_lines
from forgellm.runs.store import Run
from forgellm.runs.trash import empty_trash, trash_run
from forgellm.schema.generation import LoadRequest
from forgellm.schema.recipe import parse_recipe
from forgellm.schema.run import RunState
from forgellm.training.session import Session
from tiny_model import random_batch
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_conversations

ENGINES = pytest.mark.parametrize("engine", ["torch", "mlx"])
MODES = pytest.mark.parametrize("mode", ["merged", "stacked"])
IFT = {"training_type": "ift", "dataset": "chat", "data_mixture_ratio": 1.0}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With a model that has no chat template, and runs on documents: `lora`, `full`."""
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("taught") / "w")
    write_conversations(workspace, "chat")
    config = workspace.base_models / "tiny" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("chat_template", "no_template"))
    for kind in ("lora", "full"):
        rate = 1e-2 if kind == "lora" else 1e-3
        train(workspace, fine_tune_type=kind, learning_rate=rate).folder.rename(
            workspace.runs("cpt") / kind
        )
    return workspace


@pytest.fixture
def workspace(taught: Workspace, tmp_path: Path) -> Workspace:
    """A copy, to be changed."""
    return Workspace(Path(shutil.copytree(taught.root, tmp_path / "w")).resolve())


def train(workspace: Workspace, session: Session | None = None, **fields: Any) -> Run:
    recipe = tiny_recipe(**fields) if "base_run" not in fields else chained(**fields)
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=64)
    with lock:
        (session or Session()).train(run)
    return run


def chained(**fields: Any) -> Any:
    """Only what an instruction run needs: the model and the adapter's shape come from the base."""
    small = {"max_iterations": 4, "save_every": 2, "batch_size": 2, "learning_rate": 1e-2}
    return parse_recipe({"dtype": "float32", **small, **IFT, **fields})


def run_named(workspace: Workspace, name: str) -> Run:
    return Run(workspace.runs("cpt") / name, workspace)


def validation_losses(run: Run) -> list[float]:
    lines = effective(read_lines(run.folder)[0])
    return [line.validation_loss for line in lines if line.validation_loss is not None]


def scores(model: Path, weights: Path | None, engine: str) -> Any:
    loaded = load_generate_engine(model, weights, engine=engine, dtype="float32")
    return loaded.token_log_probs(random_batch([[31, 33]], seed=3))


def merge(model: Path, weights: Path, out: Path, engine: str) -> Path:
    out.mkdir()
    load_fuse_engine(engine).fuse(model, weights, out, lambda done: None)
    return out


@pytest.mark.parametrize(
    ("engine", "mode", "base"),
    [
        ("torch", "merged", "lora"),
        ("torch", "stacked", "lora"),
        ("torch", "merged", "full"),
        ("mlx", "merged", "lora"),
        ("mlx", "stacked", "lora"),
        ("mlx", "stacked", "full"),
    ],
)
def test_it_begins_where_the_checkpoint_ended_and_ends_as_both_by_hand(
    workspace: Workspace, engine: str, mode: str, base: str, tmp_path: Path
) -> None:
    """On the same documents the first validation is the checkpoint's own; then it is published."""
    same_data = {"training_type": "cpt", "dataset": "notes", "data_mixture_ratio": 0.95}
    run = train(workspace, base_run=base, base_run_mode=mode, engine=engine, **same_data)
    parent = run_named(workspace, base)
    best = best_checkpoint(parent.folder)
    assert best is not None and best.validation_loss is not None
    assert validation_losses(run)[0] == pytest.approx(best.validation_loss, rel=2e-5)

    record = run.record()
    parent_id = parent.record().training_id
    assert record.recipe.model_name == "tiny"
    assert record.recipe.base_run == f"{parent_id}@{best.iteration}"
    (ancestor,) = record.lineage
    assert (ancestor.training_id, ancestor.iteration) == (parent_id, best.iteration)
    assert ancestor.weights_sha256 == weights_sha256(best)

    last = find_checkpoint(run.folder, 4)
    published = build.build_published(run, last, lambda share, text: None)
    folder = workspace.root / published.published_model_path
    by_hand = workspace.base_models / "tiny"
    if mode == "merged":
        by_hand = merge(by_hand, best.weights, tmp_path / "first", engine)
    by_hand = merge(by_hand, last.weights, tmp_path / "second", engine)
    own, expected = (
        safetensors.numpy.load_file(place / "model.safetensors") for place in (folder, by_hand)
    )
    assert own.keys() == expected.keys()
    assert all(np.array_equal(own[name], expected[name]) for name in own)
    descent = json.loads((folder / "lineage.json").read_text())
    assert descent["base_model"] == "base/tiny"
    assert [item["training_id"] for item in descent["checkpoints"]] == [
        parent_id, record.training_id,
    ]  # fmt: skip
    assert f"iteration {best.iteration} of `{base}`" in (folder / "README.md").read_text()


@ENGINES
@MODES
def test_one_chats_with_what_was_trained(
    workspace: Workspace, engine: str, mode: str, tmp_path: Path
) -> None:
    run = train(workspace, base_run="lora", base_run_mode=mode, engine=engine)
    weights = find_checkpoint(run.folder, 4).weights
    assert base_model_of(weights, workspace) == "tiny"
    request = LoadRequest(
        model_name="tiny",
        adapter_path=workspace.relative(weights),
        engine=engine,  # type: ignore[arg-type]
        dtype="float32",
    )
    model, tokenizer = open_source(find_source(request, workspace))
    found = model.token_log_probs(random_batch([[31, 33]], seed=3))
    base = model_of(run.record(), workspace).path
    expected = scores(merge(base, weights, tmp_path / "out", engine), None, engine)
    assert np.allclose(found, expected, atol=1e-4)
    assert tokenizer.chat_template == (run.folder / "chat_template.jinja").read_text()


def test_a_merged_model_that_is_gone_is_made_again(workspace: Workspace) -> None:
    run = train(workspace, base_run="lora@8", fine_tune_type="dora", lora_rank=2)
    (merged,) = workspace.merged_models.glob("[!.]*")
    before = (merged / "model.safetensors").read_bytes()
    config = json.loads((run.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"merged/{merged.name}"
    shutil.rmtree(merged)
    request = LoadRequest(model_name="tiny", adapter_path=workspace.relative(run.folder))
    assert find_source(request, workspace).model == merged
    assert (merged / "model.safetensors").read_bytes() == before
    (workspace.base_models / "other").mkdir()
    other = LoadRequest(model_name="other", adapter_path=workspace.relative(run.folder))
    with pytest.raises(InvalidRequest, match="earlier run merged"):
        find_source(other, workspace)


@MODES
def test_a_resume_ends_with_the_same_bits(workspace: Workspace, mode: str) -> None:
    fields: dict[str, Any] = {"base_run": "lora@4", "base_run_mode": mode, "engine": "torch"}
    whole = train(workspace, **fields)
    session = Session()
    session.observer = lambda line, state: setattr(session, "stop", line.iteration >= 3)
    parted = train(workspace, session, **fields)
    shutil.rmtree(workspace.merged_models, ignore_errors=True)
    with supervisor.claim_resume(workspace, parted):
        assert Session().train(parted, resume=True).phase == "completed"
    ends = [
        safetensors.numpy.load_file(find_checkpoint(run.folder, 4).weights)
        for run in (whole, parted)
    ]
    assert all((ends[0][key] == ends[1][key]).all() for key in ends[0])


@MODES
def test_the_chat_template_is_carried_forward(workspace: Workspace, mode: str) -> None:
    first = train(workspace, base_run="lora", base_run_mode=mode, chat_template="chatml")
    kept = (first.folder / "chat_template.jinja").read_text()
    second = train(workspace, base_run=first.name, base_run_mode=mode)
    folder = (
        workspace.merged_models / next(workspace.merged_models.glob(f"{first.record().training_id}*"))
        if mode == "merged"
        else second.folder
    )  # fmt: skip
    assert (folder / "chat_template.jinja").read_text() == kept
    assert [item.training_id for item in second.record().lineage] == [
        run_named(workspace, "lora").record().training_id,
        first.record().training_id,
    ]
    request = LoadRequest(model_name="tiny", adapter_path=workspace.relative(second.folder))
    assert open_source(find_source(request, workspace))[1].chat_template == kept


def test_a_stacked_run_takes_the_adapters_shape_and_refuses_another(workspace: Workspace) -> None:
    recipe = chained(base_run="lora", base_run_mode="stacked")
    assert recipe.lora_rank == 16
    taken = with_base_run(recipe, workspace, may_wait=False)
    assert (taken.lora_rank, taken.lora_alpha, taken.model_name) == (4, 8.0, "tiny")
    wrong = chained(
        base_run="lora", base_run_mode="stacked", lora_rank=8, model_name="other",
        fine_tune_type="full",
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        with_base_run(wrong, workspace, may_wait=False)
    assert {problem["field"] for problem in caught.value.details["problems"]} == {
        "lora_rank", "model_name", "fine_tune_type",
    }  # fmt: skip


def test_a_clone_starts_from_the_same_checkpoint(workspace: Workspace) -> None:
    run = train(workspace, base_run="lora", base_run_mode="stacked")
    again = clone_recipe(run, {"max_iterations": 2})
    assert again.base_run == run.record().recipe.base_run
    with_base_run(again, workspace, may_wait=False)


def test_what_cannot_be_started_from_is_named(workspace: Workspace) -> None:
    def start(base_run: str) -> None:
        with_base_run(chained(base_run=base_run), workspace, may_wait=False)

    with pytest.raises(RunNotFound):
        start("absent")
    with pytest.raises(CheckpointNotFound) as caught:
        start("lora@5")
    assert caught.value.details["available"] == [4, 8, 12]
    run_named(workspace, "lora").write_state(RunState(phase="queued"))
    with pytest.raises(CheckpointNotFound, match="has not ended"):
        start("lora")
    start("lora@8")


def test_a_base_run_is_not_deleted_before_what_came_of_it(workspace: Workspace) -> None:
    run = train(workspace, base_run="lora")
    with pytest.raises(Conflict) as caught:
        trash_run(run_named(workspace, "lora"))
    assert caught.value.details["later_runs"] == [run.name]
    trash_run(run)
    assert list(workspace.merged_models.glob("[!.]*"))
    empty_trash(workspace)
    assert not list(workspace.merged_models.glob("[!.]*"))
    trash_run(run_named(workspace, "lora"))
