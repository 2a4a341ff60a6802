"""The MLX engine's own: compiled steps, what it refuses, models it cannot split."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from forgellm.engines.mlx import load
from forgellm.engines.mlx.cross_entropy import cross_entropy_sum
from forgellm.engines.mlx.load import choose_placement, load_model, split_model
from forgellm.engines.mlx.random_state import random_state, set_random_state
from forgellm.errors import ConfigError, UnsupportedModel
from tiny_model import build_tiny_model, random_batch
from training_engines import gradients, make_engine, trainable, with_random_adapters


def never() -> bool:
    return False


def test_dropout_with_gradient_checkpointing_is_a_wrong_field(tmp_path: Path) -> None:
    """MLX draws another mask on the second pass: the gradients would be of another function."""
    with pytest.raises(ConfigError, match="lora_dropout"):
        make_engine("mlx", build_tiny_model(tmp_path / "m"), grad_checkpoint=True, lora_dropout=0.1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles with g++ on a processor")
@pytest.mark.parametrize("fine_tune_type", ["lora", "full"])
def test_the_compiled_step_equals_the_plain_one(
    tmp_path: Path, fine_tune_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_tiny_model(tmp_path / "m", num_hidden_layers=1)
    ends = []
    for compiles in (False, True):
        monkeypatch.setattr(load, "COMPILE_ON_CPU", compiles)
        engine = make_engine("mlx", folder, fine_tune_type=fine_tune_type)
        for step in range(4):  # two micro-batches an update
            engine.step(random_batch([[9, 14, 7]], seed=step), 1e-2, update=step % 2 == 1)
        ends.append((trainable(engine), engine.validation_loss([random_batch([[9, 8]])], never)))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-5)
    for key in ends[0][0]:
        np.testing.assert_allclose(ends[0][0][key], ends[1][0][key], rtol=1e-4, atol=1e-6)


def test_attention_in_blocks_equals_the_dense_one_and_keeps_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forgellm.engines.mlx import attention

    folder = build_tiny_model(tmp_path / "m", num_hidden_layers=4)
    batch = random_batch([[100, 156, 256], [500, 12]])
    found, peaks = [], []
    for block in (10_000, 64):
        monkeypatch.setattr(attention, "BLOCK", block)
        engine = make_engine("mlx", folder)
        with_random_adapters(engine, tmp_path / str(block))
        peaks.append(engine.rehearse(batch))
        engine.step(batch, 0.0, update=False)
        found.append(gradients(engine))
    for key in found[0]:
        np.testing.assert_allclose(found[0][key], found[1][key], rtol=1e-3, atol=1e-6)
    assert peaks[1] < peaks[0] - 4 * 512 * 512 * 4  # a head's probabilities


def test_no_layer_keeps_its_attention_probabilities(tmp_path: Path) -> None:
    """Eight layers of [4, 512, 512] float32 would take 34 MB more than four."""
    peaks = [
        make_engine("mlx", build_tiny_model(tmp_path / str(n), num_hidden_layers=n)).rehearse(
            random_batch([[200, 312]])
        )
        for n in (4, 12)
    ]
    assert peaks[1] - peaks[0] < 0.5 * 8 * 4 * 512 * 512 * 4


def test_models_that_ignore_segments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start-up proof must notice an architecture that leaks between documents."""
    from forgellm.engines.mlx import packing, scoring

    one_segment = packing.packed_caches(mx.zeros((2, 24), mx.int32), 2)
    monkeypatch.setattr(scoring, "packed_caches", lambda *_: one_segment)
    with pytest.raises(UnsupportedModel, match="packed"):
        make_engine("mlx", build_tiny_model(tmp_path / "m"))


def test_an_architecture_that_reads_masks_of_one_row_trains_row_by_row(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m", "gemma2", sliding_window=4096)
    with pytest.raises(UnsupportedModel, match="gemma2") as refusal:
        make_engine("mlx", folder, batch_size=2)
    assert "batch_size 1" in refusal.value.suggestion
    engine = make_engine("mlx", folder, batch_size=1)
    engine.step(random_batch([[9, 14, 7]]), 1e-2, update=True)
    assert np.isfinite(engine.read_metrics().training_loss)


class _Odd(nn.Module):
    """A model whose trunk is not called `model`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Embedding(11, 8)
        self.out = nn.Linear(8, 11, bias=False)

    def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
        return self.out(self.body(tokens))


def test_a_model_that_cannot_be_split_keeps_its_own_logits() -> None:
    split = split_model(_Odd())
    tokens = mx.array([[1, 2, 3]])
    assert mx.array_equal(split.head(split.trunk(tokens, None)), split.model(tokens))


def test_a_model_that_can_be_split_holds_no_logits_in_its_trunk(tmp_path: Path) -> None:
    for architecture in ("llama", "qwen3", "gemma2", "gemma3"):
        folder = build_tiny_model(tmp_path / architecture, architecture, num_hidden_layers=6)
        model, _ = load_model(folder, mx.float32)
        split = split_model(model)
        tokens = mx.array([[1, 2, 3]])
        hidden = split.trunk(tokens, None)
        assert hidden.shape == (1, 3, 32)
        assert mx.allclose(split.head(hidden), model(tokens), rtol=1e-5, atol=1e-5)


def test_cross_entropy_in_chunks_scales_with_what_flows_back() -> None:
    mx.random.seed(0)
    hidden, weight = mx.random.normal((50, 12)), mx.random.normal((31, 12))
    targets, counted = mx.random.randint(0, 31, (50,)), mx.arange(50) % 3 > 0
    chunked = cross_entropy_sum(lambda params, rows: rows @ params["w"].T, rows=16)

    def ours(params: dict[str, mx.array], rows: mx.array) -> mx.array:
        return 3 * chunked(params, rows, targets, counted.astype(mx.float32))

    def plain(params: dict[str, mx.array], rows: mx.array) -> mx.array:
        losses = nn.losses.cross_entropy(rows @ params["w"].T, targets)
        return 3 * (losses * counted).sum()

    found = mx.value_and_grad(ours, argnums=(0, 1))({"w": weight}, hidden)
    expected = mx.value_and_grad(plain, argnums=(0, 1))({"w": weight}, hidden)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert mx.allclose(found[1][0]["w"], expected[1][0]["w"], rtol=1e-4, atol=1e-5)
    assert mx.allclose(found[1][1], expected[1][1], rtol=1e-4, atol=1e-5)


def test_logits_of_one_chunk_stand_at_a_time() -> None:
    hidden, weight = mx.random.normal((512, 16)), mx.random.normal((4096, 16))
    targets = mx.random.randint(0, 4096, (512,))
    peaks = []
    for rows in (512, 32):
        losses = cross_entropy_sum(lambda params, part: part @ params["w"].T, rows)
        mx.eval(hidden, weight, targets)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(mx.grad(losses, argnums=1)({"w": weight}, hidden, targets, mx.ones(512)))
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] < 0.5 * peaks[0]


def test_the_random_state_can_be_set_to_any_it_was_in() -> None:
    mx.random.seed(5)
    mx.eval(mx.random.uniform(shape=(7,)))
    state = random_state()
    first = mx.random.uniform(shape=(4,)).tolist()
    set_random_state(state)
    assert mx.random.uniform(shape=(4,)).tolist() == first


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m")
    config = (folder / "config.json").read_text().replace('"llama"', '"no_such"')
    (folder / "config.json").write_text(config)
    with pytest.raises(UnsupportedModel, match="no_such"):
        make_engine("mlx", folder)


def test_every_device_computes_in_bfloat16_unless_asked() -> None:
    assert choose_placement("auto").dtype_name == "bfloat16"
    assert choose_placement("float32").dtype_name == "float32"
    assert choose_placement("bfloat16").reason == "asked for"
