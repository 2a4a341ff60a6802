"""A model whose files do not belong together is refused, by both engines, with the names of what is odd."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from forgellm.catalog.safety import check_model_files
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import UnsupportedModel
from tiny_model import ARCHITECTURES, build_quantised_model, build_tiny_model
from tiny_tokenizer import build_tiny_tokenizer

Tensors = dict[str, np.ndarray]
ENGINES = ["torch", "mlx"]
UP = "model.layers.1.mlp.up_proj.weight"


def open_with(engine: str, folder: Path) -> None:
    check_model_files(folder)
    load_generate_engine(folder, None, engine=engine, dtype="float32")


def rewritten(folder: Path, change: Callable[[Tensors], Any]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def reconfigured(folder: Path, **fields: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def drop(*names: str) -> Callable[[Tensors], Any]:
    return lambda tensors: [tensors.pop(name) for name in names]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_whole_model_is_opened(tmp_path: Path, engine: str, architecture: str) -> None:
    # Six layers, as mlx-lm's Gemma 3 looks for the first that sees everything.
    open_with(engine, build_tiny_model(tmp_path / "m", architecture, num_hidden_layers=6))


CHANGES: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "a weight is missing": (drop(UP), UP),
    "a norm is missing": (drop("model.norm.weight"), "model.norm.weight"),
    "the tied embedding is missing": (
        drop("model.embed_tokens.weight"),
        "model.embed_tokens.weight",
    ),
    "a foreign weight": (lambda t: t.update({"model.odd.weight": np.ones(3, "f4")}), "model.odd"),
    "another shape": (lambda t: t.update({UP: np.ones((60, 32), "f4")}), UP),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", CHANGES)
def test_weights_that_are_not_the_model_s_are_named(tmp_path: Path, engine: str, kind: str) -> None:
    change, name = CHANGES[kind]
    folder = rewritten(build_tiny_model(tmp_path / "m"), change)
    with pytest.raises(UnsupportedModel, match=name.replace(".", r"\.")):
        open_with(engine, folder)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_quantised_model_that_lacks_weights_names_them(tmp_path: Path, engine: str) -> None:
    folder = build_quantised_model(tmp_path / "m", 4)
    open_with(engine, folder)
    whole = load_file(folder / "model.safetensors")
    changes: list[Callable[[Tensors], Any]] = [
        drop(UP, *(UP.replace("weight", part) for part in ("scales", "biases"))),
        drop("model.layers.0.input_layernorm.weight"),
        lambda t: t.update({"model.odd.weight": np.ones(3, "f4")}),
        lambda t: t.update({"model.norm.weight": np.ones(30, "f4")}),
    ]
    names = ["up_proj", "input_layernorm", r"model\.odd", r"model\.norm"]
    for change, name in zip(changes, names, strict=True):
        save_file(whole, folder / "model.safetensors", metadata={"format": "mlx"})
        rewritten(folder, change)
        with pytest.raises(UnsupportedModel, match=name):
            open_with(engine, folder)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_configuration_of_another_architecture_is_refused(tmp_path: Path, engine: str) -> None:
    folder = reconfigured(build_tiny_model(tmp_path / "m"), model_type="gpt2")
    with pytest.raises(UnsupportedModel):
        open_with(engine, folder)


def test_tensors_that_an_architecture_passes_over_do_no_harm(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m")

    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, "f4")
        tensors["vision_tower.patch.weight"] = np.ones((4, 4), "f4")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    open_with("torch", rewritten(folder, add))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 1),
        ("num_hidden_layers", -2),
        ("num_hidden_layers", "two"),
        ("num_hidden_layers", float("nan")),
        ("num_hidden_layers", True),
        ("hidden_size", 10**9),
        ("hidden_size", 40),
        ("vocab_size", 10**12),
        ("vocab_size", 98),
        ("vocab_size", 0),
        ("intermediate_size", 10**11),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 10**10),
        ("max_position_embeddings", 10**15),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", float("inf")),
        ("num_experts", 10**9),
    ],
)
def test_absurd_sizes_are_refused_from_headers_alone(
    tmp_path: Path, field: str, value: Any
) -> None:
    folder = reconfigured(build_tiny_model(tmp_path / "m"), **{field: value})
    with pytest.raises(UnsupportedModel, match=field):
        check_model_files(folder)


def test_a_width_that_no_header_shows_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    folder = reconfigured(build_tiny_model(tmp_path / "m"), intermediate_size=1_000_000)
    check_model_files(folder)
    with pytest.raises(UnsupportedModel, match=r"mlp\.down_proj.* instead of"):
        load_generate_engine(folder, None, engine="torch", dtype="float32")


def test_a_large_weight_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m", vocab_size=40_000)
    rewritten(folder, drop("model.embed_tokens.weight"))
    with pytest.raises(UnsupportedModel, match=r"lack model\.embed_tokens\.weight"):
        load_generate_engine(folder, None, engine="torch", dtype="float32")


def test_layers_that_guess_more_tokens_are_no_layers_too_many(tmp_path: Path) -> None:
    folder = reconfigured(
        build_tiny_model(tmp_path / "m"), num_hidden_layers=1, num_nextn_predict_layers=1
    )
    check_model_files(folder)


def test_tokens_without_a_row_in_the_embedding_are_refused(tmp_path: Path) -> None:
    folder = build_tiny_tokenizer(tmp_path / "m")
    build_tiny_model(folder, vocab_size=400)
    check_model_files(folder)  # rows without a token are usual
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    added = {
        "id": 450, "content": "<|new|>", "special": True, "normalized": False,
        "single_word": False, "lstrip": False, "rstrip": False,
    }  # fmt: skip
    file.write_text(json.dumps(content | {"added_tokens": [*content["added_tokens"], added]}))
    with pytest.raises(UnsupportedModel, match="451 tokens, the embedding 400 rows"):
        check_model_files(folder)
    added["content"] = "<image_soft_token>"  # as text models have that were made of one that sees
    time.sleep(0.01)
    file.write_text(json.dumps(content | {"added_tokens": [*content["added_tokens"], added]}))
    check_model_files(folder)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = build_tiny_tokenizer(tmp_path / "m")
    build_tiny_model(folder, vocab_size=200)
    with pytest.raises(UnsupportedModel, match=r"The tokenizer has \d+ tokens, the embedding 200"):
        check_model_files(folder)
