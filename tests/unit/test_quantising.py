"""Weights rounded without an engine: the same bits as MLX's own, file by file."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, quantize_model

from forgellm.catalog.facts import read_facts
from forgellm.catalog.safety import weight_files
from forgellm.engines.affine import dequantise, quantise
from forgellm.engines.quantising import plan_quantising, read_back, write_quantised
from forgellm.errors import UnsupportedModel
from tiny_model import build_tiny_model


def odd_rows() -> np.ndarray:
    """[12, 256] float32: usual weights, and what is at an edge of the rule."""
    rows = np.random.default_rng(4).normal(0, 0.05, (12, 256)).astype(np.float32)
    rows[0] = 0
    rows[1] = 0.5
    rows[2] = -0.25
    rows[3], rows[4] = np.abs(rows[3]), -np.abs(rows[4])
    rows[5] = 1e-9
    rows[6] = np.round(rows[6] * 20) / 20  # many ties
    rows[7, 100] = 1000
    rows[8] = np.arange(256) % 2 - 0.5  # both ends as far from zero
    return rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_are_rounded_as_mlx_rounds_them(bits: int, group_size: int, dtype: str) -> None:
    stored = mx.array(odd_rows()).astype(getattr(mx, dtype))
    expected = mx.quantize(stored, group_size, bits)
    found = quantise(np.array(stored.astype(mx.float32)), bits, group_size)
    assert np.array_equal(found.words, np.array(expected[0]))
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert mx.array_equal(mx.array(ours).astype(stored.dtype), theirs)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, 32), (4, 64), (8, 128)])
def test_each_number_is_met_within_a_step(bits: int, group_size: int) -> None:
    rows = odd_rows()
    words, scales, biases = stored = quantise(rows, bits, group_size)
    numbers = dequantise(stored, bits)
    for row, column in np.ndindex(*rows.shape):
        place, group = column * bits, column // group_size
        q = int(words[row, place // 32]) >> place % 32 & (1 << bits) - 1
        again = q * scales[row, group] + biases[row, group]
        assert numbers[row, column] == again
        # The step is fitted to the far end, which can leave the near end up to a step outside.
        assert abs(again - rows[row, column]) <= 1.01 * abs(scales[row, group])


def sharded_model(folder: Path, architecture: str, dtype: torch.dtype, **changes: Any) -> Path:
    build_tiny_model(folder, architecture, num_key_value_heads=4, **changes)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def written(folder: Path, out: Path, bits: int, group_size: int) -> Path:
    out.mkdir()
    config = json.loads((folder / "config.json").read_text())
    plan = plan_quantising(folder, config, bits, group_size)
    shares: list[float] = []
    write_quantised(plan, folder, out, shares.append)
    assert shares == sorted(shares) and shares[-1] == 1
    size = sum(file.stat().st_size for file in weight_files(out))
    assert read_back(plan, out) == len(plan.quantised) <= plan.num_matrices
    assert plan.num_bytes <= size < plan.num_bytes + 10_000 * len(weight_files(out))
    return out


@pytest.mark.parametrize(
    ("bits", "group_size", "architecture", "dtype"),
    [
        (4, 32, "llama", torch.float32),
        (8, 64, "llama", torch.bfloat16),
        (8, 32, "qwen2", torch.float32),
        (4, 64, "gemma3", torch.bfloat16),
    ],
)
def test_the_model_is_what_mlx_lm_makes_of_it(
    tmp_path: Path, bits: int, group_size: int, architecture: str, dtype: torch.dtype
) -> None:
    """Rows of 32 numbers are no whole groups of 64: both leave these matrices as they are."""
    changes = {"num_hidden_layers": 6} if architecture == "gemma3" else {}
    folder = sharded_model(tmp_path / "m", architecture, dtype, **changes)
    out = written(folder, tmp_path / "q", bits, group_size)
    assert len(weight_files(out)) == len(weight_files(folder)) > 1
    model, config = quantize_model(*load_model(folder), group_size, bits)
    expected, found = (dict(tree_flatten(m.parameters())) for m in (model, load_model(out)[0]))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert mx.array_equal(found[name], value), name
    own = json.loads((out / "config.json").read_text())
    for key in ("quantization", "quantization_config"):
        assert own[key] == config[key]
    facts = [
        read_facts(path, json.loads((path / "config.json").read_text())) for path in (folder, out)
    ]
    assert facts[0].num_parameters == facts[1].num_parameters
    assert facts[1].quantization == f"mlx {bits}-bit"


def test_a_tied_output_that_is_stored_too_is_left_out(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m")
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(tensors, file)
    out = written(folder, tmp_path / "q", 8, 32)
    assert not [name for name in safetensors.torch.load_file(out / file.name) if "lm_head" in name]
    load_model(out)


def test_no_matrix_with_whole_groups_is_said(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m")
    with pytest.raises(UnsupportedModel, match="groups of 128") as refusal:
        plan_quantising(folder, {}, 4, 128)
    assert "smaller group" in refusal.value.suggestion


def test_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    tensors = {"model.layers.0.mlp.experts.0.up_proj.weight": torch.zeros(32, 32)}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="experts"):
        plan_quantising(tmp_path, {}, 4, 32)


def test_memory_does_not_grow_with_the_matrix(tmp_path: Path) -> None:
    peaks = []
    for number, rows in enumerate((4_000, 16_000)):
        folder = tmp_path / f"m{number}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        matrix = {"a.weight": torch.ones(rows, 1024, dtype=torch.bfloat16)}
        safetensors.torch.save_file(matrix, folder / "model.safetensors")
        del matrix
        tracemalloc.start()
        written(folder, tmp_path / f"q{number}", 4, 64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 40e6
