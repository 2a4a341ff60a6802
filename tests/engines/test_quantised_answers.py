"""Answers from weights that stay packed in 4 or 8 bits: their products, steps of several answers, and
adapters beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forgellm.engines.adapter import LoraSettings
from forgellm.engines.torch.load import load_model
from forgellm.engines.torch.lora import add_lora, lora_layers
from forgellm.engines.torch.own_code import OwnCode
from forgellm.engines.torch.passes.affine import TiledWeight, packed_product
from forgellm.engines.torch.passes.compiler import compiler
from forgellm.engines.torch.product import Product
from forgellm.engines.torch.quantised import AffineWeight, QuantisedLinear
from forgellm.engines.torch.straight import StraightModel, straight_model
from tiny_model import build_quantised_model

CPU = torch.device("cpu")
HEIGHT, WIDTH = 80, 384

WAYS = pytest.mark.parametrize(
    ("dtype", "in_tiles"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)],
)
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler here")


def packed_weight(
    bits: int, group: int, dtype: torch.dtype, height: int = HEIGHT, seed: int = 0
) -> AffineWeight:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(256, (height, WIDTH * bits // 8), dtype=torch.uint8, generator=generator)
    scales = torch.rand(height, WIDTH // group, generator=generator) * 2**-bits
    biases = torch.rand(height, WIDTH // group, generator=generator) - 0.5
    return AffineWeight(words, scales.to(dtype), biases.to(dtype), WIDTH)


def activations(count: int, dtype: torch.dtype) -> Tensor:
    """[WIDTH, count], of which a few are a thousand times as great as the others."""
    x = torch.randn(WIDTH, count, generator=torch.Generator().manual_seed(1))
    x[::97] *= 1000
    return x.to(dtype)


def exact(weight: AffineWeight) -> Tensor:
    """[N, WIDTH] float64, not rounded."""
    steps = weight.packed
    if weight.bits == 4:
        steps = torch.stack((steps & 15, steps >> 4), -1).flatten(-2)
    scales, biases = (
        part.double().repeat_interleave(WIDTH // part.shape[1], 1)
        for part in (weight.scales, weight.biases)
    )
    return steps * scales + biases


def in_c(
    weight: AffineWeight, x: Tensor, columns: int, in_tiles: bool, is_turned: bool = False
) -> Tensor:
    """[N, count] of x [WIDTH, count], computed with `columns` columns."""
    count = x.shape[1]
    given = torch.full((WIDTH, columns), float("nan"), dtype=x.dtype)
    given[:, :count] = x
    given = given if is_turned else given.mT.contiguous()
    room = torch.full((WIDTH, columns), float("nan"))
    out = torch.empty(weight.shape[0], columns, dtype=x.dtype)
    tiled = TiledWeight.of([weight]) if in_tiles else None
    if in_tiles and tiled is None:
        pytest.skip("this machine or its compiler has no AMX tiles")
    multiply = tiled.multiply if tiled else packed_product(weight)
    assert multiply is not None
    multiply(given.data_ptr(), is_turned, room.data_ptr(), out.data_ptr(), count, columns)
    return out[:, :count]


@needs_compiler
@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize(("count", "columns"), [(1, 16), (13, 16), (20, 32)])
@WAYS
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_are_as_near_as_those_of_plain_weights(
    bits: int,
    group: int,
    dtype: torch.dtype,
    in_tiles: bool,
    count: int,
    columns: int,
    is_turned: bool,
) -> None:
    weight, x = packed_weight(bits, group, dtype), activations(count, dtype)
    found = in_c(weight, x, columns, in_tiles, is_turned)
    whole = exact(weight) @ x.double()
    error = (found.double() - whole).abs()
    if dtype == torch.float32:
        assert (error <= 1e-6 * (exact(weight).abs() @ x.double().abs())).all()
    else:  # nearer than by weights that are rounded to be plain
        rounded = (weight.plain().double() @ x.double()).to(dtype)
        assert error.square().mean() < (rounded.double() - whole).square().mean()


@needs_compiler
@WAYS
@pytest.mark.parametrize("bits", [4, 8])
def test_a_column_does_not_depend_on_the_others(
    bits: int, dtype: torch.dtype, in_tiles: bool
) -> None:
    weight, x = packed_weight(bits, 64, dtype), activations(33, dtype)
    together = in_c(weight, x, 48, in_tiles, is_turned=True)
    for column in (0, 15, 16, 32):
        alone = in_c(weight, x[:, column : column + 1], 16, in_tiles)
        assert torch.equal(together[:, column : column + 1], alone)


def test_joined_weights_are_the_layers_own() -> None:
    parts = [packed_weight(4, 64, torch.float32, height, seed=height) for height in (16, 48, 5)]
    layers = [QuantisedLinear(part, None) for part in parts]
    before = [layer.weight for layer in layers]
    x = activations(3, torch.float32)
    product = Product.of(*layers)
    torch.testing.assert_close(product(x), torch.cat(before) @ x)
    for layer, own, where in zip(layers, before, product.outputs, strict=True):
        assert torch.equal(layer.weight, own)
        joint = product.weight
        assert isinstance(joint, AffineWeight)
        assert layer.weights.packed.data_ptr() == joint.packed[where].data_ptr()
    assert TiledWeight.of(parts) is None
    other = QuantisedLinear(packed_weight(8, 64, torch.float32), None)
    with pytest.raises(TypeError):
        Product.of(layers[0], other)
    with pytest.raises(TypeError):
        Product.of(layers[0], torch.nn.Linear(WIDTH, 4))


def loaded(folder: Path, dtype: torch.dtype) -> Any:
    return load_model(folder, dtype, CPU).requires_grad_(False)


def with_adapters(model: Any, *, dora: bool = False) -> Any:
    add_lora(model, LoraSettings(rank=4, alpha=8, dora=dora), seed=0)
    generator = torch.Generator().manual_seed(2)
    for layer in lora_layers(model).values():
        layer.lora_b.data = torch.randn(layer.lora_b.shape, generator=generator) * 0.1
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("is_compiled", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("is_adapted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "architecture"), [(4, "llama"), (8, "qwen2"), (4, "qwen3")])
@torch.inference_mode()
def test_several_answers_step_as_the_own_code_does(
    bits: int,
    architecture: str,
    dtype: torch.dtype,
    is_adapted: bool,
    is_compiled: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not is_compiled:
        monkeypatch.setattr("forgellm.engines.torch.straight.compiled_step", lambda *_: None)
    folder = build_quantised_model(tmp_path / "q", bits, architecture=architecture)
    plain = loaded(folder, torch.float32)
    model = loaded(folder, dtype)
    if is_adapted:
        plain, model = with_adapters(plain), with_adapters(model)
    straight = straight_model(model)
    assert straight is not None and (straight._compiled is not None) == is_compiled
    own, reference = OwnCode(model), OwnCode(plain)
    texts = [[3], [5, 7, 11, 13, 17], list(range(40))]
    caches = [straight.new_cache() for _ in texts]
    references = [(each, [each.new_cache() for _ in texts]) for each in (reference, own)]
    for index, text in enumerate(texts):
        straight.read(text, caches[index])
        for each, kept in references:
            each.read(text, kept[index])
    for ids in ([1, 2, 3], [90, 80, 70]):
        ours = straight.step(ids, caches)
        expected, theirs = (each.step(ids, kept) for each, kept in references)
        if dtype == torch.float32:
            torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)
        else:
            error, own_error = ((x - expected).square().mean() for x in (ours, theirs))
            assert error < 2 * own_error, (error, own_error)


@torch.inference_mode()
def test_what_scales_the_whole_layer_is_left_to_the_own_code(tmp_path: Path) -> None:
    folder = build_quantised_model(tmp_path / "q", 4)
    assert straight_model(with_adapters(loaded(folder, torch.float32), dora=True)) is None
    assert isinstance(straight_model(loaded(folder, torch.float32)), StraightModel)
