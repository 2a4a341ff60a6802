"""Weights in 4 and 8 bits in both engines: the same numbers, adapters beside them, what is refused."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from forgellm.engines.adapter import CONFIG_NAME
from forgellm.engines.registry import load_fuse_engine, load_generate_engine
from forgellm.engines.torch import load
from forgellm.engines.torch.quantised import AffineWeight
from forgellm.errors import UnsupportedModel
from forgellm.schema.generation import Sampling
from tiny_model import build_quantised_model, random_batch
from training_engines import ENGINES, gradients, make_engine, with_random_adapters

GREEDY = Sampling(temperature=0, max_tokens=24, repetition_penalty=1.0)


def never() -> bool:
    return False


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_torch_makes_the_numbers_that_mlx_makes(bits: int, group_size: int, dtype: str) -> None:
    mlx_dtype, torch_dtype = getattr(mx, dtype), getattr(torch, dtype)
    rows = mx.random.normal((37, 256), key=mx.random.key(bits)).astype(mlx_dtype)
    words, scales, biases = mx.quantize(rows, group_size, bits)
    expected = mx.dequantize(words, scales, biases, group_size, bits)
    own = [
        torch.from_numpy(np.array(part.astype(mx.float32))).to(torch_dtype)
        for part in (scales, biases)
    ]
    weight = AffineWeight(torch.from_numpy(np.array(words)), *own, num_columns=256)
    found = torch.cat([rows for _, rows in weight.blocks()]).float().numpy()
    assert np.array_equal(found, np.array(expected.astype(mx.float32)))
    ids = torch.tensor([[3, 36], [0, 3]])
    assert np.array_equal(weight.rows(ids).float().numpy(), found[ids.numpy()])


@pytest.mark.parametrize(("bits", "architecture"), [(4, "llama"), (8, "qwen2"), (4, "gemma3")])
def test_both_engines_answer_as_the_rounded_weights_do(
    tmp_path: Path, bits: int, architecture: str
) -> None:
    """With tied and separate outputs, biases, and a scaled embedding."""
    # mlx-lm's Gemma wants a whole round of its window pattern.
    changes = {"num_hidden_layers": 6} if architecture == "gemma3" else {}
    folder = build_quantised_model(tmp_path / "q", bits, tmp_path / "d", architecture, **changes)
    batch = random_batch([[12, 18]], seed=77)
    engines = {
        name: load_generate_engine(path, None, engine=engine, dtype="float32")
        for name, path, engine in (
            ("torch", folder, "torch"),
            ("mlx", folder, "mlx"),
            ("plain", tmp_path / "d", "torch"),
        )
    }
    assert engines["torch"].memory_bytes() < 0.6 * engines["plain"].memory_bytes()
    scores = {name: engine.token_log_probs(batch) for name, engine in engines.items()}
    np.testing.assert_allclose(scores["torch"], scores["plain"], atol=1e-4)
    np.testing.assert_allclose(scores["torch"], scores["mlx"], atol=1e-3)
    said = {
        name: list(engine.generate([5, 7, 11], GREEDY, frozenset()))
        for name, engine in engines.items()
    }
    assert said["torch"] == said["plain"]
    assert engines["torch"].info.num_parameters == engines["plain"].info.num_parameters


@ENGINES
@pytest.mark.parametrize(("bits", "fine_tune_type"), [(4, "lora"), (8, "dora")])
def test_an_adapter_learns_on_a_quantised_base(
    name: str, tmp_path: Path, bits: int, fine_tune_type: str
) -> None:
    folder = build_quantised_model(tmp_path / "q", bits)
    engine = make_engine(name, folder, fine_tune_type=fine_tune_type)
    batches = [random_batch([[9, 14, 7]], seed=s) for s in range(3)]
    before = engine.validation_loss(batches, never)
    for batch in batches * 6:
        engine.step(batch, 1e-2, update=True)
    assert engine.validation_loss(batches, never) < before - 0.1
    plain = make_engine(name, tmp_path / "q-plain", fine_tune_type=fine_tune_type)
    assert engine.info.num_parameters == plain.info.num_parameters
    assert engine.info.num_trainable == plain.info.num_trainable


@ENGINES
@pytest.mark.parametrize("fields", [{}, {"lora_target": "attention"}, {"grad_checkpoint": True}])
def test_adapter_gradients_on_a_quantised_base_equal_those_on_its_rounded_weights(
    name: str, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """The plain model with the weights that the quantised one stands for is the reference."""
    folder = build_quantised_model(tmp_path / "q", 8, dequantised=tmp_path / "d")
    batch = random_batch([[9, 14, 7], [21, 5, 4]])
    found = []
    for path in (folder, tmp_path / "d"):
        engine = make_engine(name, path, **fields)
        with_random_adapters(engine, tmp_path / path.name / "a")
        engine.step(batch, 0.0, update=False)
        found.append(gradients(engine))
    assert found[0].keys() == found[1].keys()
    for key in found[0]:
        np.testing.assert_allclose(found[0][key], found[1][key], rtol=1e-3, atol=1e-5)


@ENGINES
def test_quantised_weights_themselves_are_not_trained(name: str, tmp_path: Path) -> None:
    folder = build_quantised_model(tmp_path / "q", 4)
    with pytest.raises(UnsupportedModel, match="Quantised") as refusal:
        make_engine(name, folder, fine_tune_type="full")
    assert "lora" in refusal.value.suggestion


@ENGINES
def test_an_adapter_beside_a_quantised_layer_is_kept_apart(name: str, tmp_path: Path) -> None:
    adapters = importlib.import_module(f"forgellm.engines.{name}.adapters")
    lora = importlib.import_module(
        f"forgellm.engines.{name}.{'lora' if name == 'torch' else 'adapters'}"
    )
    folder = build_quantised_model(tmp_path / "q", 4)
    engine: Any = make_engine(name, folder, lora_target="attention")
    with_random_adapters(engine, tmp_path / "a")
    batch = random_batch([[9, 14, 7]])
    with engine.evaluating() as answers:
        before = answers.token_log_probs(batch)
        lora.merge_lora(engine.model)
        assert len(adapters.adapter_tensors(engine.model)) == 16
        np.testing.assert_allclose(answers.token_log_probs(batch), before, atol=1e-4)
    assert engine.save_weights(tmp_path, "0000001") == ["0000001_adapters.safetensors"]


def test_both_engines_merge_an_adapter_into_a_quantised_base_alike(tmp_path: Path) -> None:
    folder = build_quantised_model(tmp_path / "q", 4)
    engine = make_engine("torch", folder, fine_tune_type="dora")
    with_random_adapters(engine, tmp_path / "a")
    (tmp_path / "a" / CONFIG_NAME).write_text(json.dumps(engine.adapter_config()))
    merged = []
    for name in ("torch", "mlx"):
        out = tmp_path / name
        out.mkdir()
        weights = tmp_path / "a" / "0000000_adapters.safetensors"
        load_fuse_engine(name).fuse(folder, weights, out, lambda done: None)
        model = load.load_model(out, torch.float32, torch.device("cpu"))
        merged.append(dict(model.named_parameters()))
    assert merged[0].keys() == merged[1].keys()
    for key, value in merged[0].items():
        assert torch.allclose(value, merged[1][key], rtol=1e-2, atol=1e-4), key


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "in a way"), (None, "in a way")],
)
def test_the_torch_engine_says_what_to_do_with_other_formats(
    tmp_path: Path, settings: dict[str, Any] | None, said: str
) -> None:
    folder = build_quantised_model(tmp_path / "q", 4)
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = settings
    config["quantization_config"] = settings or {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=said) as refusal:
        make_engine("torch", folder)
    assert "mlx" in refusal.value.suggestion


def test_the_torch_engine_refuses_weights_of_three_bits(tmp_path: Path) -> None:
    folder = build_quantised_model(tmp_path / "q", 3)
    with pytest.raises(UnsupportedModel, match="4 and 8 bits, not 3"):
        make_engine("torch", folder)


def test_a_quantised_model_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    folder = build_quantised_model(tmp_path / "q", 4)
    tensors = load_file(folder / "model.safetensors")
    for lost in ("model.norm.weight", "model.layers.1.mlp.up_proj.biases"):
        save_file({k: v for k, v in tensors.items() if k != lost}, folder / "model.safetensors")
        with pytest.raises(UnsupportedModel, match=lost.removesuffix(".biases")):
            make_engine("torch", folder)
