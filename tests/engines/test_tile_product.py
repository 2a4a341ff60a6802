"""Products of weights with few columns in AMX tiles; where a processor has none, torch computes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forgellm.engines.torch.passes.tiles import tile_product

HEIGHT, WIDTH = 80, 96
WEIGHT = torch.randn(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()

pytestmark = pytest.mark.skipif(
    tile_product(WEIGHT) is None, reason="this machine or its compiler has no AMX tiles"
)


def product(x: Tensor, columns: int, *, is_turned: bool) -> Tensor:
    """[HEIGHT, n] of x [WIDTH, n], computed with `columns` columns."""
    count = x.shape[1]
    given = torch.full((WIDTH, columns), float("nan"), dtype=x.dtype)
    given[:, :count] = x
    given = given if is_turned else given.mT.contiguous()
    pairs = torch.zeros(WIDTH // 2, columns, dtype=torch.int32)
    out = torch.empty(HEIGHT, columns, dtype=x.dtype)
    compute = tile_product(WEIGHT)
    assert compute is not None
    compute(
        WEIGHT.data_ptr(), HEIGHT, WIDTH, given.data_ptr(), is_turned, pairs.data_ptr(),
        out.data_ptr(), count, columns,
    )  # fmt: skip
    assert not out[:, count:].any()
    return out[:, :count]


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize(("count", "columns"), [(1, 16), (16, 16), (17, 32), (40, 48)])
def test_products_are_rounded_once(count: int, columns: int, is_turned: bool) -> None:
    x = torch.randn(WIDTH, count, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = WEIGHT.double() @ x.double()
    found = product(x, columns, is_turned=is_turned)
    assert (found.double() - exact).abs().max() < 2**-8 * exact.abs().max()
    rounded = exact.bfloat16()
    assert (found == rounded).double().mean() > 0.98  # others lie between two numbers


def test_a_column_does_not_depend_on_the_others() -> None:
    x = torch.randn(WIDTH, 33, generator=torch.Generator().manual_seed(2)).bfloat16()
    together = product(x, 48, is_turned=True)
    for column in (0, 15, 16, 32):
        alone = product(x[:, column : column + 1], 16, is_turned=False)
        assert torch.equal(together[:, column : column + 1], alone)


def test_weights_that_fill_no_tiles_are_left_to_torch() -> None:
    assert tile_product(WEIGHT[:-1]) is None
    assert tile_product(WEIGHT[:, :-1].contiguous()) is None
    assert tile_product(WEIGHT.float()) is None
    assert tile_product(WEIGHT.mT) is None
