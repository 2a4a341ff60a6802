"""Adapters alone, as PEFT, mlx-lm and llama.cpp read them: with the outputs that they have here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import peft
import pytest
import torch
import transformers
from mlx_lm.utils import load as load_mlx_lm
from numpy.typing import NDArray

from forgellm import supervisor
from forgellm.cli.main import main
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import CheckpointCorrupt, Conflict, InvalidRequest, UnsupportedModel
from forgellm.paths import Workspace
from forgellm.publishing.build_adapter import build_adapter
from forgellm.publishing.exports import export_model
from forgellm.publishing.family import family
from forgellm.publishing.gguf_export import build_gguf
from forgellm.runs.checkpoints import find_checkpoint
from forgellm.runs.store import Run
from forgellm.schema.exports import ExportRequest
from forgellm.schema.generation import Sampling
from forgellm.training.session import Session
from llama_cpp import answers
from tiny_model import build_tiny_model, random_batch
from tiny_workspace import build_tiny_workspace, tiny_recipe, write_conversations

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"fine_tune_type": "dora"},
    "few": {"num_layers": 1, "lora_target": "attention", "lora_rank": 3, "lora_alpha": 7.5},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("exports"), num_hidden_layers=3)
    write_conversations(workspace, "talks")
    return workspace


@pytest.fixture(scope="module")
def runs(workspace: Workspace) -> dict[str, Run]:
    return {name: train(workspace, **fields) for name, fields in KINDS.items()}


def train(workspace: Workspace, **fields: Any) -> Run:
    found, lock = supervisor.claim_new_run(workspace, tiny_recipe(**fields), max_seq_length=64)
    with lock:
        Session().train(found)
    return found


def build(run: Run, kind: Any, iteration: int = 8) -> Path:
    request = ExportRequest(model_name=f"{run.name}@{iteration}", format=kind)
    return (
        run.workspace.root / build_adapter(request, run.workspace, lambda done, text: None)["path"]
    )


def ours(run: Run, engine: str, iteration: int = 8) -> NDArray[np.float32]:
    """[T] log-probabilities of the base model with the checkpoint."""
    weights = find_checkpoint(run.folder, iteration).weights
    loaded = load_generate_engine(base_of(run), weights, engine=engine, dtype="float32")
    return loaded.token_log_probs(BATCH)[0]


def picked(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[T] of logits [T, V], as `ours`."""
    highest = logits.max(-1, keepdims=True)
    log_probs = logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))
    return log_probs[np.arange(len(logits)), BATCH.targets[0]] * BATCH.loss_mask[0]


def base_of(run: Run) -> Path:
    return run.workspace.base_models / "tiny"


BATCH = random_batch([[64]], seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_it_with_equal_logits(kind: str, runs: dict[str, Run]) -> None:
    run = runs[kind]
    folder = build(run, "peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base/tiny"
    assert ("layers_to_transform" in config) is (kind == "few")
    base = transformers.AutoModelForCausalLM.from_pretrained(base_of(run), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folder)
    with torch.no_grad():
        theirs = model(torch.tensor(BATCH.tokens.astype(np.int64))).logits[0].numpy()
    np.testing.assert_allclose(picked(theirs), ours(run, "torch"), atol=2e-5)
    assert not np.allclose(picked(theirs), ours(run, "torch", 4), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_loads_it_with_equal_logits(kind: str, runs: dict[str, Run]) -> None:
    run = runs[kind]
    folder = build(run, "mlx")
    model, _ = load_mlx_lm(str(base_of(run)), adapter_path=str(folder))
    theirs = np.array(model(mx.array(BATCH.tokens))[0].astype(mx.float32))
    np.testing.assert_allclose(picked(theirs), ours(run, "mlx"), atol=2e-4)
    assert not np.allclose(picked(theirs), ours(run, "mlx", 4), atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_llama_cpp_answers_as_the_checkpoint_does(architecture: str, tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path / "w")
    if architecture != "llama":
        build_tiny_model(workspace.base_models / "tiny", architecture, vocab_size=400)
    run = train(workspace)
    folder = build(run, "gguf-lora", 12)
    (lora,) = folder.glob("*.gguf")
    wanted = ExportRequest(model_name="base/tiny", format="gguf", type="F32")
    made = build_gguf(wanted, workspace, lambda done, text: None)
    base = workspace.root / made["path"] / made["file"]

    tokenizer = Tokenizer.load(base_of(run))
    prompt = "Note 3. the tide lamp"
    ids = tokenizer.encode(prompt)
    greedy = Sampling(temperature=0, max_tokens=20, repetition_penalty=1.0)
    said = []
    for weights in (find_checkpoint(run.folder, 12).weights, None):
        engine = load_generate_engine(base_of(run), weights, engine="torch", dtype="float32")
        said.append(tokenizer.decode(list(engine.generate(ids, greedy, frozenset()))))
    assert said[0] != said[1]
    body = {"prompt": prompt, "n_predict": 20, "temperature": 0, "repeat_penalty": 1.0}
    body |= {"ignore_eos": True}
    for adapter, expected in zip((lora, None), said, strict=True):
        (found,) = answers(base, [body], lora=adapter)
        assert found["choices"][0]["text"] == expected


def test_the_gguf_file_says_what_it_is(runs: dict[str, Run]) -> None:
    run = runs["few"]
    (file,) = build(run, "gguf-lora").glob("*.gguf")
    reader = gguf.GGUFReader(file)
    said = {
        key: reader.get_field(key).contents()
        for key in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha")
    }
    assert list(said.values()) == ["adapter", "llama", "lora", 7.5]
    shapes = {tensor.name: tuple(tensor.data.shape) for tensor in reader.tensors}
    assert shapes["blk.2.attn_k.weight.lora_a"] == (3, 32)
    assert shapes["blk.2.attn_k.weight.lora_b"] == (16, 3)
    assert len(shapes) == 8
    with pytest.raises(UnsupportedModel, match="DoRA"):
        build(runs["dora"], "gguf-lora")


def test_the_command_leaves_a_folder_that_tells_what_it_is(
    runs: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["lora"]
    workspace = run.workspace
    options = ["export", f"{run.name}@4", "--format", "peft"]
    assert main(["models", "--workspace", str(workspace.root), *options]) == 0
    folder = workspace.exported_models / f"{run.name}_0000004-peft"
    said = capsys.readouterr().out
    assert f"models/exported/{folder.name}/" in said and "adapter_model.safetensors" in said
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "lineage.json",
    }
    note = json.loads((folder / "lineage.json").read_text())
    assert (note["kind"], note["base_model"]) == ("peft", "base/tiny")
    card = (folder / "README.md").read_text()
    assert note["command"] in card and f"`cpt/{run.name}@4`" in card
    assert str(workspace.root) not in card + (folder / "adapter_config.json").read_text()
    (member,) = (m for m in family(workspace) if m.name == f"exported/{folder.name}")
    assert member.made_from == [f"cpt/{run.name}@4"]
    with pytest.raises(Conflict, match="there already"):
        export_model(ExportRequest(model_name=f"{run.name}@4", format="peft"), workspace)


def test_the_adapter_of_a_run_on_a_merged_model_says_so(runs: dict[str, Run]) -> None:
    run = train(
        runs["lora"].workspace,
        dataset="talks",
        training_type="ift",
        base_run=f"{runs['lora'].name}@8",
        model_name="",
    )
    card = (build(run, "mlx", 4) / "README.md").read_text()
    assert f"forgellm publish --run {run.name} --iteration 4" in card
    assert "`merged/" in card


def test_what_is_no_sound_adapter_is_refused(workspace: Workspace) -> None:
    full = train(workspace, fine_tune_type="full")
    with pytest.raises(InvalidRequest, match="full model") as caught:
        build(full, "peft", 4)
    assert "forgellm publish --run" in caught.value.suggestion
    run = train(workspace, seed=8)
    weights = find_checkpoint(run.folder, 8).weights
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match="0000008_adapters"):
        build(run, "peft")
    assert not list(workspace.exported_models.glob(f"{run.name}*"))
