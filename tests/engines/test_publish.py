"""Publishing checkpoints of real runs: the weights, the folder, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from forgellm import supervisor
from forgellm.catalog import find_model, list_models
from forgellm.child import error_of
from forgellm.engines.registry import load_fuse_engine, load_generate_engine
from forgellm.engines.torch import fuse
from forgellm.errors import (
    CheckpointCorrupt,
    CheckpointNotFound,
    DiskFull,
    ForgeError,
    InvalidRequest,
    ModelChanged,
    ModelNotFound,
    UnsupportedModel,
)
from forgellm.paths import Workspace
from forgellm.publishing import build
from forgellm.publishing.publish import find_publishable, publish_checkpoint
from forgellm.runs.checkpoints import find_checkpoint
from forgellm.runs.store import Run
from forgellm.schema.recipe import parse_recipe
from forgellm.training.session import Session
from tiny_model import build_tiny_model, random_batch
from tiny_workspace import build_tiny_workspace, tiny_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(build_tiny_workspace(tmp_path_factory.mktemp("trained")))


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy, to be damaged."""
    shutil.copytree(
        trained.workspace.root, tmp_path / "w", ignore=shutil.ignore_patterns("published")
    )
    workspace = Workspace((tmp_path / "w").resolve())
    return Run(workspace.runs("cpt") / trained.name, workspace)


def train(workspace: Workspace, **fields: Any) -> Run:
    found, lock = supervisor.claim_new_run(workspace, tiny_recipe(**fields), max_seq_length=64)
    with lock:
        Session().train(found)
    return found


def publish(run: Run, iteration: int = 4, dtype: str | None = None) -> Path:
    published = build.build_published(
        run, find_checkpoint(run.folder, iteration), lambda fraction, text: None, dtype
    )
    return run.workspace.root / published.published_model_path


def scores(folder: Path, weights: Path | None = None) -> Any:
    engine = load_generate_engine(folder, weights, dtype="float32")
    return engine.token_log_probs(random_batch([[31, 33]], seed=3))


def base_of(run: Run) -> Path:
    return run.workspace.base_models / "tiny"


def test_the_published_model_is_the_checkpoint_asked_for(trained: Run) -> None:
    published = publish_checkpoint(trained, find_checkpoint(trained.folder, 4))
    folder = trained.workspace.root / published.published_model_path
    assert published.model_name == f"published/{folder.name}"
    assert folder.name.startswith(f"{trained.name}_0000004_")
    ours = scores(folder)
    for iteration, is_same in ((4, True), (12, False)):
        weights = find_checkpoint(trained.folder, iteration).weights
        assert np.allclose(ours, scores(base_of(trained), weights), atol=1e-4) is is_same
    assert not np.allclose(ours, scores(base_of(trained)), atol=1e-2)
    assert published.verification == {
        "top1_agreement": 1.0,
        "mean_kl": pytest.approx(0, abs=1e-6),
        "positions": published.verification["positions"],
        "dtype": "float32",
    }
    assert published.verification["positions"] > 200
    for path in (published.dashboard_path, published.readme_path):
        assert (trained.workspace.root / path).stat().st_size > 500


def test_it_loads_by_its_name_and_in_transformers(trained: Run) -> None:
    folder = publish(trained)
    model = find_model(f"published/{folder.name}", trained.workspace)
    assert (model.kind, model.facts.type) == ("published", "instruct")
    assert f"published/{folder.name}" in [found.name for found in list_models(trained.workspace)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("the tide lamp keeper", return_tensors="pt").input_ids
    assert torch.isfinite(theirs(ids).logits).all()


def test_the_folder_tells_what_it_is_and_how_to_make_it_again(trained: Run) -> None:
    folder = publish(trained)
    card = (folder / "README.md").read_text("utf-8")
    checkpoint = find_checkpoint(trained.folder, 4)
    assert f"{checkpoint.validation_loss:.4f}" in card
    assert trained.record().data["fingerprint"] in card
    assert f"forgellm cli generate --model published/{folder.name}\n" in card
    assert str(trained.workspace.root) not in card
    assert f"forgellm reproduce {trained.record().training_id}" in card
    assert "Not measured in this run" in card
    assert card.count("**published**") == 1
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
    assert parse_recipe(recipe) == trained.record().recipe.model_copy(
        update={"model_name": "base/tiny"}
    )
    assert not list(folder.parent.glob(".tmp-*"))
    assert not (folder / "adapter_config.json").exists()


@pytest.mark.parametrize("kind", ["dora", "full"])
def test_other_ways_of_training_are_published_too(kind: str, tmp_path: Path) -> None:
    run = train(build_tiny_workspace(tmp_path / "w"), fine_tune_type=kind)
    folder = publish(run, 12)
    weights = find_checkpoint(run.folder, 12).weights
    assert np.allclose(scores(folder), scores(base_of(run), weights), atol=1e-4)
    assert find_model(f"published/{folder.name}", run.workspace)


@pytest.mark.parametrize("architecture", ["gemma3", "qwen2"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_weights_are_stored_as_the_base_stores_its_own(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    base = workspace.base_models / "tiny"
    build_tiny_model(base, architecture, vocab_size=400)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="60KB")
    run = train(workspace, fine_tune_type=kind)
    folder = publish(run, 12)
    before, after = (find_model(f"{place}", workspace).facts for place in ("base/tiny", f"published/{folder.name}"))  # fmt: skip
    assert (after.dtype, after.num_parameters) == ("bfloat16", before.num_parameters)
    assert after.size_bytes == pytest.approx(before.size_bytes, rel=0.1)
    if kind == "lora":
        assert len(list(folder.glob("*.safetensors"))) == len(list(base.glob("*.safetensors"))) > 1


def test_merging_is_done_in_float32(trained: Run, tmp_path: Path) -> None:
    """With the base in bfloat16, each weight is the float32 sum, rounded once."""
    workspace = build_tiny_workspace(tmp_path / "w")
    base = workspace.base_models / "tiny"
    stored = {k: v.bfloat16() for k, v in load_file(base / "model.safetensors").items()}
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    out.mkdir()
    weights = find_checkpoint(trained.folder, 12).weights
    load_fuse_engine().fuse(base, weights, out, lambda done: None)
    fused, adapter = load_file(out / "model.safetensors"), load_file(weights)
    scale = json.loads((trained.folder / "adapter_config.json").read_text())["lora_parameters"]
    name = "model.layers.1.mlp.up_proj"
    delta = scale["scale"] * (adapter[f"{name}.lora_a"] @ adapter[f"{name}.lora_b"]).T
    expected = (stored[f"{name}.weight"].float() + delta).bfloat16()
    assert torch.equal(fused[f"{name}.weight"], expected)
    assert torch.equal(fused["model.norm.weight"], stored["model.norm.weight"])


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_model_in_bfloat16_can_be_published_exactly(kind: str, tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    base = workspace.base_models / "tiny"
    stored = {k: v.bfloat16() for k, v in load_file(base / "model.safetensors").items()}
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    run = train(workspace, fine_tune_type=kind)
    weights = find_checkpoint(run.folder, 12).weights
    expected = scores(weights) if kind == "full" else scores(base, weights)
    rounded, exact = publish(run, 12), publish(run, 12, "float32")
    assert not np.allclose(scores(rounded), expected, atol=1e-4)
    assert np.allclose(scores(exact), expected, atol=1e-5)
    assert {str(tensor.dtype) for tensor in load_file(exact / "model.safetensors").values()} == {
        "torch.float32"
    }
    assert find_model(f"published/{exact.name}", workspace).facts.dtype == "float32"
    note = json.loads((exact / "lineage.json").read_text())
    assert note["command"].endswith("--iteration 12 --dtype float32")


def test_a_damaged_checkpoint_is_refused(run: Run) -> None:
    weights = find_checkpoint(run.folder, 4).weights
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match="0000004_adapters"):
        publish_checkpoint(run, find_checkpoint(run.folder, 4))
    assert published_names(run) == []


def test_a_changed_adapter_scale_is_refused(run: Run) -> None:
    file = run.folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["lora_parameters"]["scale"] *= 2
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointCorrupt, match="adapter_config"):
        publish(run)
    assert published_names(run) == []


def test_a_merge_gone_wrong_is_not_published(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "_merged", lambda name, weight, parts, settings: weight.float())
    with pytest.raises(ForgeError, match="does not answer") as caught:
        publish(run, 12)
    details = caught.value.details
    assert details["top1_agreement"] < 0.95 or details["mean_kl"] > 0.02
    assert published_names(run) == []


def test_an_adapter_of_another_model_is_refused(run: Run) -> None:
    build_tiny_model(base_of(run), vocab_size=400, hidden_size=48)
    with pytest.raises(ModelChanged, match="config.json was changed"):
        publish(run)
    last = find_checkpoint(run.folder, 12)
    with pytest.raises(UnsupportedModel, match="does not fit"):  # where the change is allowed
        build.build_published(run, last, lambda done, text: None, None, True)


def test_without_its_base_model_the_error_of_the_child_is_raised_here(run: Run) -> None:
    shutil.rmtree(base_of(run))
    with pytest.raises(ModelNotFound) as caught:
        publish_checkpoint(run, find_checkpoint(run.folder, 4))
    assert caught.value.details["model_name"] == "tiny"


def test_a_child_that_is_ended_leaves_nothing_behind(run: Run) -> None:
    with pytest.raises(ForgeError, match="without a result"):
        publish_checkpoint(run, find_checkpoint(run.folder, 4), on_start=lambda stop: stop())
    assert published_names(run) == []


def test_a_full_disk_is_named_and_leaves_nothing_behind(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(fuse, "save_file", full)
    with pytest.raises(DiskFull):
        publish(run)
    assert published_names(run) == []


def test_leftovers_of_a_crash_are_removed(run: Run) -> None:
    (run.workspace.published_models / ".unfinished-old" / "model").mkdir(parents=True)
    folder = publish(run)
    assert published_names(run) == [folder.name]
    assert not (run.workspace.published_models / ".unfinished-old").exists()


def published_names(run: Run) -> list[str]:
    folder = run.workspace.published_models
    return [path.name for path in folder.glob("*") if path.is_dir()]


def test_a_checkpoint_is_found_by_its_weights(trained: Run) -> None:
    path = f"{trained.output_dir}/0000008_adapters.safetensors"
    for training_dir in (None, trained.output_dir):
        run, checkpoint = find_publishable(trained.workspace, path, training_dir)
        assert (run.folder, checkpoint.iteration) == (trained.folder, 8)


@pytest.mark.parametrize(
    "path",
    ["", "..", "/etc/passwd", "models/cpt", "models/base/tiny/model.safetensors", "{}/run.json",
     "{}/checkpoints/0000008", "{}/0000009_adapters.safetensors", "{}"],
)  # fmt: skip
def test_what_is_no_checkpoint_is_not_found(trained: Run, path: str) -> None:
    with pytest.raises(CheckpointNotFound):
        find_publishable(trained.workspace, path.format(trained.output_dir))


def test_a_training_dir_that_is_another_run_is_refused(trained: Run, run: Run) -> None:
    other = run.folder.with_name("other")
    shutil.copytree(run.folder, other)
    path = f"{run.output_dir}/0000008_adapters.safetensors"
    with pytest.raises(InvalidRequest, match="training_dir"):
        find_publishable(run.workspace, path, "models/cpt/other")


def test_an_error_survives_the_way_through_another_process() -> None:
    for error in (ModelNotFound("x", ["here"]), CheckpointCorrupt("bad", details={"file": "f"})):
        copy = error_of(error.to_dict())
        assert type(copy) is type(error)
        assert (copy.to_dict(), str(copy)) == (error.to_dict(), error.message)
