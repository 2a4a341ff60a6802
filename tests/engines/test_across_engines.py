"""What one engine made, the other continues, reads and publishes; mlx-lm's own tools too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgellm import supervisor
from forgellm.catalog import find_model
from forgellm.engines.adapter import CONFIG_NAME
from forgellm.engines.registry import load_fuse_engine, load_generate_engine
from forgellm.generation.loading import find_source, open_source
from forgellm.paths import Workspace
from forgellm.publishing import build
from forgellm.runs import checkpoints
from forgellm.runs.store import Run
from forgellm.schema.generation import LoadRequest, Sampling
from forgellm.schema.run import RunState
from forgellm.training.session import Session
from tiny_model import build_quantised_model, build_tiny_model, random_batch
from tiny_workspace import build_tiny_workspace, tiny_recipe
from training_engines import make_engine, save, trainable

BOTH_WAYS = pytest.mark.parametrize(("maker", "reader"), [("torch", "mlx"), ("mlx", "torch")])
GREEDY = Sampling(temperature=0, max_tokens=24, repetition_penalty=1.0)


def never() -> bool:
    return False


@pytest.mark.parametrize("fine_tune_type", ["lora", "dora", "full"])
def test_both_engines_draw_the_same_loss_curve(tmp_path: Path, fine_tune_type: str) -> None:
    """From the same weights and data, in float32, for 50 updates."""
    folder = build_tiny_model(tmp_path / "m")
    fields = {"fine_tune_type": fine_tune_type, "weight_decay": 0.1}
    engines = [make_engine(name, folder, **fields) for name in ("torch", "mlx")]
    start = save(engines[0], tmp_path / "c")
    if fine_tune_type == "full":
        assert trainable(engines[0]).keys() == trainable(engines[1]).keys()
    else:
        _take_weights(engines[1], start)
    for step in range(50):
        batch = random_batch([[9, 20, 1], [3, 13, 14]], seed=step % 7, padding=6)
        metrics = []
        for engine in engines:
            engine.step(batch, 3e-3, update=True)
            metrics.append(engine.read_metrics())
        assert metrics[1].training_loss == pytest.approx(metrics[0].training_loss, rel=1e-3)
        assert metrics[1].grad_norm == pytest.approx(metrics[0].grad_norm, rel=1e-2)
    assert metrics[0].training_loss < 4.3  # 97 tokens: 4.57 nats before it has learned anything


def _take_weights(engine: Any, file: Path) -> None:
    """The adapters of a file, with an optimiser that has not moved yet."""
    own = save(engine, file.parent / "own")
    shutil.copy(file, own)
    from forgellm.engines.mlx import adapters, tensor_files

    adapters.copy_into(engine.model, tensor_files.read_tensors(own))
    engine.params = adapters.adapter_tensors(engine.model)


@BOTH_WAYS
@pytest.mark.parametrize("fine_tune_type", ["lora", "dora", "full"])
def test_a_checkpoint_resumes_in_the_other_engine(
    tmp_path: Path, maker: str, reader: str, fine_tune_type: str
) -> None:
    """Weights and moments: the next updates are those that its maker would have made."""
    folder = build_tiny_model(tmp_path / "m")
    batches = [random_batch([[9, 14, 7], [24, 5, 1]], seed=s) for s in range(8)]
    first = make_engine(maker, folder, fine_tune_type=fine_tune_type)
    for batch in batches[:5]:
        first.step(batch, 1e-2, update=True)
    file = save(first, tmp_path / "c", "0000005")
    second = make_engine(reader, folder, fine_tune_type=fine_tune_type)
    second.restore(file, tmp_path / "c")
    for batch in batches[5:]:
        first.step(batch, 1e-2, update=True)
        second.step(batch, 1e-2, update=True)
    ends = trainable(first), trainable(second)
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[0].items():
        np.testing.assert_allclose(ends[1][key], value, rtol=1e-3, atol=2e-5, err_msg=key)


def train(workspace: Workspace, **fields: Any) -> Run:
    run, lock = supervisor.claim_new_run(workspace, tiny_recipe(**fields), max_seq_length=64)
    with lock:
        assert Session().train(run).phase == "completed"
    return run


def resume(workspace: Workspace, run: Run) -> RunState:
    with supervisor.claim_resume(workspace, run):
        return Session().train(run, resume=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each engine, trained long enough to say something of its own."""
    found = {}
    for name in ("torch", "mlx"):
        workspace = build_tiny_workspace(tmp_path_factory.mktemp(name))
        found[name] = train(workspace, engine=name, max_iterations=20, learning_rate=2e-2)
    return found


def greedy(run: Run, engine: str, adapter_path: str | None = None) -> str:
    request = LoadRequest(
        model_name="base/tiny",
        adapter_path=adapter_path or str(run.workspace.relative(run.folder)),
        engine=engine,  # type: ignore[arg-type]
        dtype="float32",
    )
    model, tokenizer = open_source(find_source(request, run.workspace))
    ids = list(model.generate(tokenizer.encode("The brown fox"), GREEDY, frozenset()))
    return tokenizer.decode(ids)


@pytest.mark.parametrize("maker", ["torch", "mlx"])
def test_an_adapter_gives_the_same_greedy_text_in_both_engines(
    runs: dict[str, Run], maker: str
) -> None:
    texts = {engine: greedy(runs[maker], engine) for engine in ("torch", "mlx")}
    assert texts["torch"] == texts["mlx"]
    assert len(texts["torch"]) > 10


@BOTH_WAYS
def test_a_run_goes_on_in_the_other_engine(
    tmp_path: Path, runs: dict[str, Run], maker: str, reader: str
) -> None:
    workspace = _copy_of(runs[maker], tmp_path)
    run = Run(workspace.runs("cpt") / runs[maker].name, workspace)
    record = run.record()
    recipe = record.recipe.model_copy(update={"engine": reader, "max_iterations": 24})
    run.write_record(record.model_copy(update={"recipe": recipe}))
    state = resume(workspace, run)
    assert (state.phase, state.iteration) == ("completed", 24)


def _copy_of(run: Run, tmp_path: Path) -> Workspace:
    shutil.copytree(run.workspace.root, tmp_path / "w", symlinks=True)
    return Workspace((tmp_path / "w").resolve())


@BOTH_WAYS
def test_a_checkpoint_is_published_by_the_other_engine(
    tmp_path: Path, runs: dict[str, Run], maker: str, reader: str
) -> None:
    """`agreement` compares base plus adapter with what was written, by the publishing engine."""
    workspace = _copy_of(runs[maker], tmp_path)
    run = Run(workspace.runs("cpt") / runs[maker].name, workspace)
    record = run.record()
    recipe = record.recipe.model_copy(update={"engine": reader})
    run.write_record(record.model_copy(update={"recipe": recipe}))
    best = checkpoints.best_checkpoint(run.folder)
    assert best is not None
    published = build.build_published(run, best, lambda share, text: None)
    assert published.verification["top1_agreement"] > 0.99
    folder = find_model(published.model_name, workspace).path
    batch = random_batch([[31, 33]], seed=3)
    scores = [
        load_generate_engine(folder, None, engine=name, dtype="float32").token_log_probs(batch)
        for name in ("torch", "mlx")
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fine_tune_type", ["lora", "dora", "full"])
def test_both_engines_merge_to_the_same_weights(tmp_path: Path, fine_tune_type: str) -> None:
    import safetensors.numpy

    folder = build_tiny_model(tmp_path / "m")
    engine = make_engine("mlx", folder, fine_tune_type=fine_tune_type)
    for seed in range(5):
        engine.step(random_batch([[9, 14, 7]], seed=seed), 1e-2, update=True)
    file = save(engine, tmp_path / "c")
    if config := engine.adapter_config():
        (tmp_path / "c" / CONFIG_NAME).write_text(json.dumps(config))
    merged = []
    for name in ("torch", "mlx"):
        out = tmp_path / name
        out.mkdir()
        load_fuse_engine(name).fuse(folder, file, out, lambda share: None)
        merged.append(safetensors.numpy.load_file(out / "model.safetensors"))
    assert merged[0].keys() == merged[1].keys()
    for key, value in merged[0].items():
        np.testing.assert_allclose(merged[1][key], value, rtol=1e-5, atol=1e-6, err_msg=key)


@BOTH_WAYS
@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_on_a_quantised_base_is_published_plain(
    tmp_path: Path, bits: int, maker: str, reader: str
) -> None:
    """Both engines read the result, and it answers as the quantised base with its adapter does."""
    folder = build_quantised_model(tmp_path / "q", bits)
    engine = make_engine(maker, folder)
    for seed in range(8):
        engine.step(random_batch([[9, 14, 7]], seed=seed), 1e-2, update=True)
    file = save(engine, tmp_path / "c")
    (tmp_path / "c" / CONFIG_NAME).write_text(json.dumps(engine.adapter_config()))
    out = tmp_path / "out"
    out.mkdir()
    fuse = load_fuse_engine(maker)
    fuse.fuse(folder, file, out, lambda share: None)
    assert "quantization" not in json.loads((out / "config.json").read_text())
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8], [90, 80, 70, 60, 50]]
    agreement = fuse.agreement(folder, file, out, prompts)
    assert agreement.mean_kl < 1e-3
    batch = random_batch([[12, 18]], seed=77)
    found = load_generate_engine(out, None, engine=reader, dtype="float32").token_log_probs(batch)
    expected = load_generate_engine(folder, file, engine=maker).token_log_probs(batch)
    np.testing.assert_allclose(found, expected, atol=0.1)


# --- mlx-lm's own command lines -----------------------------------------------------------------


def mlx_lm(command: str, *arguments: str | Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "mlx_lm", command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("maker", ["torch", "mlx"])
def test_mlx_lm_generates_with_our_run(runs: dict[str, Run], maker: str) -> None:
    run = runs[maker]
    said = mlx_lm(
        "generate",
        "--model",
        run.workspace.base_models / "tiny",
        "--adapter-path",
        run.folder,
        "--prompt",
        "The brown fox",
        "--ignore-chat-template",
        *("--max-tokens", "24", "--temp", "0"),
    )
    assert greedy(run, "mlx") in said


def test_our_engines_take_an_adapter_made_by_mlx_lm(tmp_path: Path, runs: dict[str, Run]) -> None:
    workspace = _copy_of(runs["mlx"], tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"text": f"The brown fox jumps over dog number {n}."} for n in range(16)]
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    adapter = workspace.models / "cpt" / "from_mlx_lm"
    base = workspace.base_models / "tiny"
    flags = ("--iters", "12", "--batch-size", "2", "--learning-rate", "0.02", "--num-layers", "2")
    mlx_lm("lora", "--train", "--model", base, "--data", data, "--adapter-path", adapter, *flags)
    run = Run(workspace.runs("cpt") / runs["mlx"].name, workspace)
    texts = {name: greedy(run, name, "models/cpt/from_mlx_lm") for name in ("torch", "mlx")}
    assert texts["torch"] == texts["mlx"]
    said = mlx_lm(
        "generate",
        *("--model", base, "--adapter-path", adapter, "--prompt", "The brown fox"),
        *("--ignore-chat-template", "--max-tokens", "24", "--temp", "0"),
    )
    assert texts["mlx"] in said
