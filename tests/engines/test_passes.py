"""The passes in C against those in torch operations, and what happens without a C compiler."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from forgellm.engines.torch.passes import compiler
from forgellm.engines.torch.passes.native import NativePasses, passes_for
from forgellm.engines.torch.passes.plain import Passes, Turns

needs_compiler = pytest.mark.skipif(compiler.compiler() is None, reason="no C compiler here")
TYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16),
]
ROWS, WIDTH, NUM_HEADS, HEAD_SIZE = 7, 53, (4, 2), 10


class Case:
    """Random values of the two types, and both kinds of passes. Those in torch operations compute in
    float32, so that what they say is exact beside a bfloat16."""

    def __init__(self, sums: torch.dtype, computed: torch.dtype) -> None:
        self.sums, self.computed = sums, computed
        self._generator = torch.Generator().manual_seed(0)
        native = passes_for(sums, computed)
        assert isinstance(native, NativePasses)
        self.native, self.plain = native, Passes()

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(dtype or self.computed)

    def strided(self, rows: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full((rows, width + 3), 9.0, dtype=dtype or self.computed)[:, :width]

    def same(self, ours: Tensor, exact: Tensor) -> None:
        coarse = ours.dtype == torch.bfloat16
        tolerance = {"rtol": 2**-7, "atol": 2**-7} if coarse else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(ours.float(), exact.float(), **tolerance)


@pytest.fixture(params=TYPES, ids=lambda types: f"{types[0]}-{types[1]}".replace("torch.", ""))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


@needs_compiler
def test_norms_forward_and_backward(case: Case) -> None:
    x, plus = (case.random(ROWS, WIDTH, dtype=case.sums) for _ in range(2))
    added, g = case.random(ROWS, WIDTH + 3)[:, :WIDTH], case.random(ROWS, WIDTH + 3)[:, :WIDTH]
    weight = case.random(WIDTH, dtype=torch.float32)
    ours, exact = case.strided(ROWS, WIDTH), torch.empty(ROWS, WIDTH)
    case.native.rms_norm(x, weight, 1e-5, ours)
    case.plain.rms_norm(x.float(), weight, 1e-5, exact)
    case.same(ours, exact)
    middle = case.native.add_rms_norm(x, added, weight, 1e-5, ours)
    case.same(middle, x.float() + added.float())
    case.plain.rms_norm(middle.float(), weight, 1e-5, exact)
    case.same(ours, exact)
    for wants_weight in (False, True):
        d_x, d_weight = case.native.rms_norm_backward(g, x, weight, 1e-5, plus, wants_weight)
        given = (g.float(), x.float(), weight, 1e-5, plus.float(), True)
        exact_x, exact_weight = case.plain.rms_norm_backward(*given)
        case.same(d_x, exact_x)
        assert (d_weight is not None) == wants_weight
        if d_weight is not None and exact_weight is not None:
            case.same(d_weight, exact_weight)


@needs_compiler
@pytest.mark.parametrize("is_normed", [False, True], ids=["plain", "normed"])
def test_turning_queries_and_keys_and_back(case: Case, is_normed: bool) -> None:
    angles = case.random(ROWS, HEAD_SIZE // 2, dtype=torch.float32)
    weights = [case.random(HEAD_SIZE, dtype=torch.float32) if is_normed else None for _ in range(2)]
    turns = Turns(angles.cos(), angles.sin(), weights[0], weights[1], 1e-5)
    width = (sum(NUM_HEADS) + NUM_HEADS[1]) * HEAD_SIZE
    qkv = case.random(ROWS, width)
    rotated = case.native.rotate(qkv, turns, NUM_HEADS)
    case.same(rotated, case.plain.rotate(qkv.float(), turns, NUM_HEADS))
    g = case.random(*rotated.shape)
    ours, exact = case.strided(ROWS, width), torch.full((ROWS, width), 9.0)
    d_ours = case.native.rotate_backward(g, qkv, turns, NUM_HEADS, ours, True)
    d_exact = case.plain.rotate_backward(g.float(), qkv.float(), turns, NUM_HEADS, exact, True)
    case.same(ours, exact)  # with what stood in the values' places
    assert (d_ours is not None) == (d_exact is not None) == is_normed
    for one, other in zip(d_ours or (), d_exact or (), strict=True):
        case.same(one, other)


@needs_compiler
def test_gates_forward_and_backward(case: Case) -> None:
    gate_up, g = case.random(ROWS, 2 * WIDTH) * 3, case.random(ROWS, WIDTH + 3)[:, :WIDTH]
    gate_up[0, :2] = torch.tensor([-200.0, 200.0])
    ours, exact = case.strided(ROWS, WIDTH), torch.empty(ROWS, WIDTH)
    case.native.swiglu(gate_up, ours)
    case.plain.swiglu(gate_up.float(), exact)
    case.same(ours, exact)
    ours.zero_()
    found = case.native.swiglu_backward(g, gate_up, ours)
    case.same(found, case.plain.swiglu_backward(g.float(), gate_up.float(), exact))
    case.same(ours, exact)


@needs_compiler
def test_softmax_backward_leaves_nothing_above_the_diagonal(case: Case) -> None:
    num_queries, num_keys = 5, 9
    scores = case.random(2, 3 * num_queries, num_keys) - 3
    d_probs = case.random(*scores.shape)
    scores[0, 0, -1], d_probs[0, 0, -1] = float("nan"), float("inf")  # above it
    exact, d_exact = scores.float().clone(), d_probs.float().clone()
    exact[0, 0, -1] = d_exact[0, 0, -1] = 0
    case.plain.softmax_backward(exact, d_exact, num_queries)
    case.native.softmax_backward(scores, d_probs, num_queries)
    case.same(scores, exact)
    case.same(d_probs, d_exact)
    assert scores[0, 0, -1] == d_probs[0, 0, -1] == 0


@needs_compiler
def test_exponentials_keep_a_labels_doubt(case: Case) -> None:
    logits, labels = case.random(ROWS, WIDTH) * 4, torch.arange(ROWS)
    logits[0, 0] = 40.0  # all but sure
    exact = logits.float().clone()
    behind, others = case.native.exponentials(logits, labels)
    exact_behind, exact_others = case.plain.exponentials(exact, labels)
    case.same(logits, exact)
    torch.testing.assert_close(behind, exact_behind)
    torch.testing.assert_close(others, exact_others, rtol=1e-5, atol=0)
    assert 0 < others[0] < 1e-6


@needs_compiler
@pytest.mark.parametrize("place", ["logits", "x", "gate"])
def test_what_is_no_number_stays_none(case: Case, place: str) -> None:
    x = case.random(ROWS, 2 * WIDTH)
    x[2, 5] = float("nan")
    out = case.strided(ROWS, WIDTH)
    if place == "logits":
        _, others = case.native.exponentials(x, torch.zeros(ROWS, dtype=torch.int64))
        assert others.isnan().nonzero().flatten().tolist() == [2]
    elif place == "x":
        ones, wide = torch.ones(2 * WIDTH), case.strided(ROWS, 2 * WIDTH)
        case.native.rms_norm(x.to(case.sums), ones, 1e-5, wide)
        assert wide.isnan().all(1).nonzero().flatten().tolist() == [2]
    else:
        case.native.swiglu(x, out)
        assert out.isnan().nonzero().tolist() == [[2, 5]]


def test_a_compiler_that_fails_costs_speed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cc: no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for cached in (compiler.compiler, compiler.compiler_version, passes_for):
        cached.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert type(passes_for(torch.float32, torch.float32)) is Passes
        assert "no such header" in caplog.text
        assert list((tmp_path / "cache" / "forgellm").iterdir()) == []
    finally:
        for cached in (compiler.compiler, compiler.compiler_version, passes_for):
            cached.cache_clear()


@needs_compiler
def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "two.c"
    source.write_text("int two(void) { return TWO; }\n")
    first = compiler.library(source, ["-DTWO=2"])
    assert first is not None and first.two() == 2
    [made] = (tmp_path / "forgellm").iterdir()
    time = made.stat().st_mtime_ns
    assert compiler.library(source, ["-DTWO=2"]) is not None
    assert made.stat().st_mtime_ns == time
    other = compiler.library(source, ["-DTWO=22"])
    assert other is not None and other.two() == 22
