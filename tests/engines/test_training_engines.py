"""What every training engine must do, by the same tests: loss, gradients, packing, resume, merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from forgellm.data.batches import Batch
from forgellm.engines.adapter import CONFIG_NAME
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import CheckpointCorrupt, ConfigError, UnsupportedModel
from tiny_model import ARCHITECTURES, build_tiny_model, documents_of, random_batch
from training_engines import (
    ENGINES,
    gradients,
    make_engine,
    plain_loss,
    save,
    trainable,
    with_random_adapters,
)

# mlx-lm's Gemma 2 knows no sliding window and reads masks of one row only.
PACKED = [
    (name, architecture)
    for name in ("torch", "mlx")
    for architecture in ARCHITECTURES
    if (name, architecture) != ("mlx", "gemma2")
]


def never() -> bool:
    return False


def reference_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


@ENGINES
@pytest.mark.parametrize("dora", [False, True])
def test_loss_and_gradients_equal_peft(tmp_path: Path, name: str, dora: bool) -> None:
    import peft

    folder = build_tiny_model(tmp_path / "m")
    engine = make_engine(name, folder, fine_tune_type="dora" if dora else "lora")
    with_random_adapters(engine, tmp_path / "a")
    batch = random_batch([[9, 14, 7], [21, 5, 4]])
    engine.step(batch, 0.0, update=False)
    ours, weights = gradients(engine), trainable(engine)

    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM"
    )
    reference = peft.get_peft_model(reference_model(folder), config)
    theirs = {}
    for full_name, module in reference.named_modules():
        if hasattr(module, "lora_A"):
            layer = full_name.removeprefix("base_model.model.")
            for part, ours_name in (("lora_A", "lora_a"), ("lora_B", "lora_b")):
                weight = getattr(module, part)["default"].weight
                weight.data.copy_(torch.from_numpy(weights[f"{layer}.{ours_name}"]).T)
                theirs[f"{layer}.{ours_name}"] = weight
            if dora:
                theirs[f"{layer}.m"] = module.lora_magnitude_vector["default"].weight
    total, count = plain_loss(reference, documents_of(batch))
    total.backward()

    metrics = engine.read_metrics()
    assert metrics.num_tokens == count
    assert metrics.training_loss == pytest.approx(total.item() / count, rel=1e-5)
    assert ours.keys() == theirs.keys()
    for key, grad in ours.items():
        expected = theirs[key].grad.numpy()
        expected = expected.T if "lora_" in key else expected
        assert np.linalg.norm(grad - expected) / np.linalg.norm(expected) < 1e-4, key


@ENGINES
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_rows", [None, 16])
def test_full_gradients_equal_plain_transformers(
    tmp_path: Path, name: str, tied: bool, chunk_rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the head shares the embedding or not, and with a loss in one chunk or in several."""
    if chunk_rows:
        monkeypatch.setattr(f"forgellm.engines.{name}.cross_entropy.CHUNK_BYTES", 1)
    folder = build_tiny_model(tmp_path / "m", tie_word_embeddings=tied)
    engine = make_engine(name, folder, fine_tune_type="full")
    batch = random_batch([[9, 14, 7], [21, 5, 4]])
    engine.step(batch, 0.0, update=False)
    ours = gradients(engine)
    reference = reference_model(folder)
    plain_loss(reference, documents_of(batch))[0].backward()
    expected = {key: p.grad.numpy() for key, p in reference.named_parameters()}
    assert ours.keys() == expected.keys()
    for key, grad in ours.items():
        difference = np.linalg.norm(grad - expected[key]) / np.linalg.norm(expected[key])
        assert difference < 1e-4, key


@pytest.mark.parametrize(("name", "architecture"), PACKED)
def test_packed_loss_equals_unpacked_document_by_document(
    tmp_path: Path, name: str, architecture: str
) -> None:
    changes: dict[str, Any] = {"num_hidden_layers": 6}  # Gemma 3 has a full layer every sixth
    if (name, architecture) == ("mlx", "mistral"):
        changes["sliding_window"] = None
    folder = build_tiny_model(tmp_path / "m", architecture, **changes)
    engine = load_generate_engine(folder, None, engine=name, dtype="float32")
    reference = reference_model(folder)
    batch = random_batch([[9, 20, 1], [3, 13, 14]], padding=6)
    found = engine.token_log_probs(batch)
    assert not found[batch.loss_mask == 0].any()
    with torch.no_grad():
        for row in range(2):
            for segment in range(3):
                inside = (batch.segment_ids[row] == segment) & (batch.loss_mask[row] > 0)
                document = batch.tokens[row][batch.segment_ids[row] == segment]
                expected, _ = plain_loss(reference, [document])
                assert -found[row][inside].sum() == pytest.approx(expected.item(), rel=1e-4)


@ENGINES
@pytest.mark.parametrize("fine_tune_type", ["lora", "full"])
def test_accumulation_equals_the_big_batch(tmp_path: Path, name: str, fine_tune_type: str) -> None:
    """Micro-batches with very different numbers of counted tokens."""
    folder = build_tiny_model(tmp_path / "m")
    big = random_batch([[9, 14, 7], [24, 5, 1]])
    big.loss_mask[1, 3:] = 0
    parts = [
        Batch(*(getattr(big, f)[r : r + 1] for f in big.__dataclass_fields__)) for r in range(2)
    ]
    weights = []
    for micro_batches in ([big], parts):
        engine = make_engine(name, folder, fine_tune_type=fine_tune_type)
        for _ in range(3):
            for i, batch in enumerate(micro_batches):
                engine.step(batch, 1e-2, update=i == len(micro_batches) - 1)
        weights.append(trainable(engine))
    for key in weights[0]:
        np.testing.assert_allclose(weights[0][key], weights[1][key], rtol=1e-3, atol=2e-5)


@ENGINES
@pytest.mark.parametrize("fine_tune_type", ["lora", "dora", "full"])
def test_loss_falls_and_a_restored_engine_continues_bit_for_bit(
    tmp_path: Path, name: str, fine_tune_type: str
) -> None:
    folder = build_tiny_model(tmp_path / "m")
    fields = {"fine_tune_type": fine_tune_type, "lora_dropout": 0.1, "weight_decay": 0.1}
    batches = [random_batch([[9, 14, 7], [24, 5, 1]], seed=s % 3) for s in range(12)]
    engine = make_engine(name, folder, **fields)
    before = engine.validation_loss(batches[:3], never)
    for batch in batches[:6]:
        engine.step(batch, 1e-2, update=True)
    file = save(engine, tmp_path / "c", "0000006")
    middle = engine.validation_loss(batches[:3], never)
    for batch in batches[6:]:
        engine.step(batch, 1e-2, update=True)
    assert engine.validation_loss(batches[:3], never) < before

    again = make_engine(name, folder, **fields)
    again.restore(file, tmp_path / "c")
    assert again.validation_loss(batches[:3], never) == middle
    for batch in batches[6:]:
        again.step(batch, 1e-2, update=True)
    ends = trainable(engine), trainable(again)
    for key, value in ends[0].items():
        assert np.array_equal(value, ends[1][key]), key


@ENGINES
def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path, name: str) -> None:
    folder = build_tiny_model(tmp_path / "m")
    key = "model.layers.0.self_attn.q_proj.lora_a"
    first = [trainable(make_engine(name, folder, seed=s))[key] for s in (1, 1, 2)]
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


@ENGINES
@pytest.mark.parametrize("fine_tune_type", ["lora", "full"])
def test_gradient_checkpointing_changes_nothing(
    tmp_path: Path, name: str, fine_tune_type: str
) -> None:
    folder = build_tiny_model(tmp_path / "m")
    batch = random_batch([[9, 14, 7]])
    found = []
    for grad_checkpoint in (False, True):
        engine = make_engine(
            name, folder, fine_tune_type=fine_tune_type, grad_checkpoint=grad_checkpoint
        )
        if fine_tune_type == "lora":
            with_random_adapters(engine, tmp_path / str(grad_checkpoint))
        engine.step(batch, 0.0, update=False)
        found.append(gradients(engine))
    for key in found[0]:
        np.testing.assert_allclose(found[0][key], found[1][key], rtol=1e-5, atol=1e-7)


@ENGINES
@pytest.mark.parametrize("fine_tune_type", ["lora", "full"])
def test_bfloat16_training_stays_close_to_float32(
    tmp_path: Path, name: str, fine_tune_type: str
) -> None:
    folder = build_tiny_model(tmp_path / "m")
    batches = [random_batch([[9, 14, 7]], seed=s) for s in range(3)] * 5
    losses = []
    for dtype in ("float32", "bfloat16"):
        engine = make_engine(name, folder, fine_tune_type=fine_tune_type, dtype=dtype)
        assert engine.info.dtype == dtype
        for batch in batches:
            engine.step(batch, 5e-3, update=True)
        losses.append(engine.validation_loss(batches[:3], never))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@ENGINES
@pytest.mark.parametrize("fine_tune_type", ["lora", "dora"])
def test_the_adapter_merged_for_generation_predicts_what_training_measured(
    tmp_path: Path, name: str, fine_tune_type: str
) -> None:
    folder = build_tiny_model(tmp_path / "m")
    engine = make_engine(name, folder, fine_tune_type=fine_tune_type)
    for seed in range(5):
        engine.step(random_batch([[9, 14, 7]], seed=seed), 1e-2, update=True)
    batch = random_batch([[12, 18]], seed=77)
    expected = -engine.validation_loss([batch], never)
    file = save(engine, tmp_path / "c")
    (tmp_path / "c" / CONFIG_NAME).write_text(json.dumps(engine.adapter_config()))
    answering = load_generate_engine(folder, file, engine=name, dtype="float32")
    found = answering.token_log_probs(batch).sum() / batch.num_targets
    assert found == pytest.approx(expected, rel=1e-5)


@ENGINES
def test_saved_adapter_has_mlx_lm_layout(tmp_path: Path, name: str) -> None:
    folder = build_tiny_model(tmp_path / "m")
    engine = make_engine(name, folder, num_layers=1)
    file = save(engine, tmp_path / "c", "0000005")
    assert file.name == "0000005_adapters.safetensors"
    tensors = trainable(engine)
    assert tensors["model.layers.1.self_attn.q_proj.lora_a"].shape == (32, 4)
    assert tensors["model.layers.1.mlp.up_proj.lora_b"].shape == (4, 64)
    assert not any(".layers.0." in key for key in tensors)
    config = engine.adapter_config()
    assert config is not None
    assert config["num_layers"] == 1
    assert config["lora_parameters"]["scale"] == config["lora_alpha"] / config["r"] == 2.0
    assert "self_attn.q_proj" in config["lora_parameters"]["keys"]


@ENGINES
def test_rehearsal_leaves_weights_gradients_and_randomness_alone(tmp_path: Path, name: str) -> None:
    folder = build_tiny_model(tmp_path / "m")
    batch = random_batch([[9, 14, 7]])
    ends = []
    for rehearses in (False, True):
        engine = make_engine(name, folder, lora_dropout=0.3)
        if rehearses:
            assert engine.rehearse(random_batch([[20, 10]], seed=4)) > 0
            assert not gradients(engine)
        engine.step(batch, 1e-2, update=True)
        ends.append(trainable(engine))
    for key in ends[0]:
        assert np.array_equal(ends[0][key], ends[1][key]), key


@ENGINES
def test_only_the_last_layers_train_in_full_mode_too(tmp_path: Path, name: str) -> None:
    folder = build_tiny_model(tmp_path / "m")
    engine = make_engine(name, folder, fine_tune_type="full", num_layers=1)
    before = trainable(engine)
    assert before
    assert all(".layers.1." in key for key in before)
    engine.step(random_batch([[9, 14, 7]]), 1e-2, update=True)
    assert any(not np.array_equal(before[key], value) for key, value in trainable(engine).items())


@ENGINES
def test_a_target_the_model_lacks_is_a_wrong_field(tmp_path: Path, name: str) -> None:
    folder = build_tiny_model(tmp_path / "m")
    with pytest.raises(ConfigError, match="lora_target"):
        make_engine(name, folder, lora_target=["up_proj", "no_such"])


@ENGINES
def test_a_gradient_that_is_not_finite_is_reported_as_such(tmp_path: Path, name: str) -> None:
    folder = build_tiny_model(tmp_path / "m")
    engine = make_engine(name, folder, fine_tune_type="full", max_grad_norm=0.0)
    for seed in range(3):
        engine.step(random_batch([[9, 14, 7]], seed=seed), 1e30, update=True)
    assert not np.isfinite(engine.read_metrics().training_loss)


@ENGINES
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    folder = build_tiny_model(tmp_path / "m")
    engine = make_engine(name, folder)
    file = save(engine, tmp_path / "c")
    (tmp_path / "c" / "optimizer.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointCorrupt, match="optimiser"):
        engine.restore(file, tmp_path / "c")
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CheckpointCorrupt, match="adapters"):
        engine.restore(file, tmp_path / "c")


@ENGINES
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, name: str) -> None:
    small = make_engine(name, build_tiny_model(tmp_path / "small"), num_layers=1)
    file = save(small, tmp_path / "c")
    large = make_engine(name, build_tiny_model(tmp_path / "m"))
    with pytest.raises(UnsupportedModel, match="does not fit"):
        large.restore(file, tmp_path / "c")
