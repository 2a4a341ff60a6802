"""Models of many kinds: each trains with the loss that plain transformers has for each document alone,
answers with the tokens that transformers finds, and is published for transformers to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from architecture_table import DOCS, outcomes, table_in, table_of

from architecture_checks import (
    BATCH,
    check_answers,
    check_publishing,
    check_training,
    loss_alone,
    stored,
)
from architectures import CONFIGS, build_architecture
from forgellm.engines.adapter import CONFIG_NAME
from forgellm.engines.registry import load_fuse_engine, load_generate_engine
from forgellm.engines.torch.lora import lora_layers
from forgellm.engines.torch.packing import Packing, packing_of
from forgellm.errors import UnsupportedModel
from forgellm.schema.generation import Sampling
from training_engines import make_engine, with_random_adapters

# One of each kind of code; the table in docs/models.md is made of all.
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
    "kimi_linear",
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
    "zamba",
]


@pytest.mark.parametrize("name", QUICK)
def test_adapters_train_on_packed_documents_as_each_is_alone(tmp_path: Path, name: str) -> None:
    engine = check_training("torch", build_architecture(tmp_path / name, name))
    # No adapter that the model's code passes by.
    assert all(layer.lora_b.abs().max() > 0 for layer in lora_layers(engine.model).values())


@pytest.mark.parametrize("name", QUICK)
def test_all_weights_train_on_packed_documents(tmp_path: Path, name: str) -> None:
    check_training("torch", build_architecture(tmp_path / name, name), fine_tune_type="full")


@pytest.mark.parametrize("name", QUICK)
def test_answers_are_those_of_whole_texts(tmp_path: Path, name: str) -> None:
    check_answers("torch", build_architecture(tmp_path / name, name))


@pytest.mark.parametrize("name", QUICK)
def test_what_is_published_is_what_was_trained(tmp_path: Path, name: str) -> None:
    check_publishing("torch", build_architecture(tmp_path / name, name), tmp_path)


def bare_gpt2(folder: Path) -> Path:
    build_architecture(folder, "gpt2")
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    safetensors.torch.save_file(bare, file, metadata={"format": "pt"})
    return folder


def test_mlx_answers_with_and_merges_what_torch_has_trained_of_gpt2(tmp_path: Path) -> None:
    folder = bare_gpt2(tmp_path / "gpt2")
    engine: Any = make_engine("torch", folder)
    with_random_adapters(engine, tmp_path / "c")
    weights = tmp_path / "c" / "0000000_adapters.safetensors"
    (tmp_path / "c" / CONFIG_NAME).write_text(json.dumps(engine.adapter_config()))
    assert engine.adapter_config()["fan_in_fan_out"]
    sampling = Sampling(max_tokens=8, temperature=0.0, repetition_penalty=1.0)
    answers = [
        list(
            load_generate_engine(folder, weights, engine=name, dtype="float32").generate(
                [5, 9, 33], sampling, frozenset()
            )
        )
        for name in ("torch", "mlx")
    ]
    assert answers[0] == answers[1]
    for name in ("torch", "mlx"):
        (tmp_path / name).mkdir()
        load_fuse_engine(name).fuse(folder, weights, tmp_path / name, lambda done: None)
        assert loss_alone(tmp_path / name) == pytest.approx(
            engine.validation_loss([BATCH], lambda: False), abs=1e-4
        )


def test_gpt2_is_merged_into_files_that_begin_with_the_blocks(tmp_path: Path) -> None:
    """As those that OpenAI published do, without the prefix that transformers writes."""
    folder = bare_gpt2(tmp_path / "gpt2")
    check_publishing("torch", folder, tmp_path, fine_tune_type="dora")
    assert "h.0.attn.c_attn.weight" in stored(tmp_path / "published")


def test_a_model_that_cannot_pack_computes_its_documents_one_by_one(tmp_path: Path) -> None:
    for name, packing in (("mamba2", Packing.ONE_BY_ONE), ("mixtral", Packing.TOGETHER)):
        engine: Any = make_engine("torch", build_architecture(tmp_path / name, name))
        assert packing_of(engine.model) is packing


def test_a_model_whose_loss_is_not_ours_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="own code gives the same documents alone"):
        make_engine("torch", build_architecture(tmp_path / "bert", "bert"))


def test_what_lora_leaves_out_is_told(tmp_path: Path) -> None:
    mixture: Any = make_engine("torch", build_architecture(tmp_path / "m", "mixtral"))
    [warning] = mixture.warnings
    assert "mlp.experts.down_proj" in warning and "%" in warning
    assert make_engine("torch", build_architecture(tmp_path / "l", "llama")).warnings == []
    chosen = make_engine("torch", tmp_path / "m", lora_target="attention")
    assert chosen.warnings == []


def test_mlx_says_before_it_trains_what_it_could_not_publish(tmp_path: Path) -> None:
    experts = build_architecture(tmp_path / "m", "qwen3_moe")
    [warning] = make_engine("mlx", experts).warnings
    assert "not published" in warning
    llama = build_architecture(tmp_path / "l", "llama")
    for kind in ("lora", "full"):
        assert make_engine("mlx", llama, fine_tune_type=kind).warnings == []
    with pytest.raises(UnsupportedModel, match="lays its weights out anew"):
        check_publishing("mlx", experts, tmp_path, fine_tune_type="full")


@pytest.mark.parametrize("name", ["llama", "cohere2", "gemma3_text", "olmo2", "qwen3_moe"])
def test_mlx_trains_and_answers_as_transformers_computes(tmp_path: Path, name: str) -> None:
    folder = build_architecture(tmp_path / name, name)
    check_training("mlx", folder)
    check_answers("mlx", folder)


def test_a_library_that_wants_to_exit_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="a package that is not here"):
        make_engine("mlx", build_architecture(tmp_path / "olmo", "olmo"))


def test_layers_in_attention_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    for name, layer in (("gpt2", "attn.c_proj"), ("gpt_neox", "attention.dense")):
        folder = build_architecture(tmp_path / name, name)
        engine: Any = make_engine("torch", folder, lora_target="attention")
        found = lora_layers(engine.model)
        assert any(n.endswith(layer) for n in found) and not any("mlp" in n for n in found)


def test_a_balancing_loss_that_is_not_added_is_told(tmp_path: Path) -> None:
    folder = build_architecture(tmp_path / "m", "mixtral", output_router_logits=True)
    engine = make_engine("torch", folder, fine_tune_type="full")
    assert any("output_router_logits" in warning for warning in engine.warnings)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_table_in_the_docs_is_what_happens() -> None:
    assert table_in(DOCS.read_text("utf-8")) == table_of(outcomes(sorted(CONFIGS)))
