"""Models of many kinds: each trains, with the loss that plain transformers has for each document alone,
and answers with the tokens that transformers finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from architectures import CONFIGS, build_architecture
from forgellm.engines.torch.generate import TorchGenerateEngine
from forgellm.engines.torch.lora import lora_layers
from forgellm.engines.torch.packing import Packing, packing_of
from forgellm.schema.generation import Sampling
from tiny_model import documents_of, random_batch
from training_engines import make_engine, plain_loss

# One of each kind of code; `make test-full` takes all.
QUICK = [
    "bamba",
    "bloom",
    "cohere2",
    "deepseek_v3",
    "falcon",
    "falcon_mamba",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "jamba",
    "lfm2",
    "llama4_text",
    "mamba2",
    "mixtral",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "phimoe",
    "qwen3_5_text",
    "qwen3_moe",
    "stablelm",
]
ALL = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in sorted(CONFIGS)
]


def by_transformers(folder: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()


@pytest.mark.parametrize("name", ALL)
def test_packed_documents_have_the_loss_they_have_alone_and_are_learned(
    tmp_path: Path, name: str
) -> None:
    folder = build_architecture(tmp_path / name, name)
    batch = random_batch([[5, 17, 9], [20, 3, 8]], padding=3)
    with torch.no_grad():
        total, count = plain_loss(by_transformers(folder), documents_of(batch))

    engine: Any = make_engine("torch", folder)
    assert engine.validation_loss([batch], lambda: False) == pytest.approx(
        float(total) / count, abs=1e-5
    )
    losses = []
    for _ in range(3):
        engine.step(batch, 1e-2, True)
        losses.append(engine.read_metrics().training_loss)
    assert losses[0] == pytest.approx(float(total) / count, abs=0.1)  # some have dropout
    assert losses[2] < losses[0]
    # No adapter that the model's code passes by.
    assert all(layer.lora_b.abs().max() > 0 for layer in lora_layers(engine.model).values())


@pytest.mark.parametrize("name", ALL)
def test_all_weights_train(tmp_path: Path, name: str) -> None:
    engine: Any = make_engine(
        "torch", build_architecture(tmp_path / name, name), fine_tune_type="full"
    )
    batch = random_batch([[5, 17, 9]])
    before = engine.validation_loss([batch], lambda: False)
    for _ in range(2):
        engine.step(batch, 1e-3, True)
    assert engine.validation_loss([batch], lambda: False) < before


@pytest.mark.parametrize("name", ALL)
def test_likeliest_answer_is_the_one_of_whole_texts(tmp_path: Path, name: str) -> None:
    folder = build_architecture(tmp_path / name, name)
    prompt = np.random.default_rng(3).integers(1, 97, 11).tolist()
    plain, said = by_transformers(folder), list(prompt)
    with torch.no_grad():
        for _ in range(12):
            logits = plain(input_ids=torch.tensor([said]), use_cache=False).logits
            said.append(int(logits[0, -1].argmax()))

    engine = TorchGenerateEngine(folder, None, dtype="float32")
    sampling = Sampling(max_tokens=12, temperature=0.0, repetition_penalty=1.0)
    assert list(engine.generate(prompt, sampling, frozenset())) == said[11:]
    # A second turn that goes on from what the first left behind, and one that turns off from it.
    rest = sampling.model_copy(update={"max_tokens": 5})
    assert list(engine.generate(said[:18], rest, frozenset())) == said[18:]


def test_a_model_that_cannot_pack_computes_its_documents_one_by_one(tmp_path: Path) -> None:
    for name, packing in (("mamba2", Packing.ONE_BY_ONE), ("mixtral", Packing.TOGETHER)):
        engine: Any = make_engine("torch", build_architecture(tmp_path / name, name))
        assert packing_of(engine.model) is packing


def test_what_lora_leaves_out_is_told(tmp_path: Path) -> None:
    mixture: Any = make_engine("torch", build_architecture(tmp_path / "m", "mixtral"))
    [warning] = mixture.warnings
    assert "mlp.experts.down_proj" in warning and "%" in warning
    assert make_engine("torch", build_architecture(tmp_path / "l", "llama")).warnings == []
    chosen = make_engine("torch", tmp_path / "m", lora_target="attention")
    assert chosen.warnings == []


def test_a_balancing_loss_that_is_not_added_is_told(tmp_path: Path) -> None:
    folder = build_architecture(tmp_path / "m", "mixtral", output_router_logits=True)
    engine = make_engine("torch", folder, fine_tune_type="full")
    assert any("output_router_logits" in warning for warning in engine.warnings)
