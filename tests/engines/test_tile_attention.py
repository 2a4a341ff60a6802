"""Attention in AMX tiles against attention as its formula says, in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forgellm.engines.torch.attention import Segment, packed_layout
from forgellm.engines.torch.passes.tiles import TileAttention, tile_attention

CASES = {  # heads, key heads, head size, and the lengths of each row's documents
    "one document a row": (4, 2, 64, [[70], [70]]),
    "short ones": (3, 1, 32, [[1, 33, 64, 2], [40, 31, 29]]),
    "as many key heads": (2, 2, 128, [[96, 4]]),
}


def tiles() -> TileAttention:
    found = tile_attention(*(torch.empty(1, 1, 1, 32, dtype=torch.bfloat16) for _ in range(2)))
    if found is None:
        pytest.skip("no AMX, or no compiler, here")
    return found


def by_formula(q: Tensor, k: Tensor, v: Tensor, scale: float, ids: Tensor) -> tuple[Tensor, Tensor]:
    groups, length = q.shape[1] // k.shape[1], q.shape[2]
    scores = (q @ k.repeat_interleave(groups, 1).mT) * scale
    seen = (ids[:, :, None] == ids[:, None, :]) & torch.ones(length, length).tril().bool()
    scores = scores.masked_fill(~seen[:, None], float("-inf"))
    return scores.softmax(-1) @ v.repeat_interleave(groups, 1), scores.logsumexp(-1)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_the_formula(case: str, num_threads: int) -> None:
    attention = tiles()
    heads, key_heads, size, lengths = CASES[case]
    ids = torch.tensor([[n for n, c in enumerate(row) for _ in range(c)] for row in lengths])
    segments = packed_layout(ids).segments
    assert len(segments) == sum(map(len, lengths)) and isinstance(segments[0], Segment)
    generator = torch.Generator().manual_seed(0)

    def random(count: int, room: int = 0) -> Tensor:
        """[B, heads, T, d] as views of rows that stand further apart."""
        rows = torch.randn(*ids.shape, count * size + room, generator=generator).bfloat16()
        heads_of = rows[..., : count * size].unflatten(-1, (count, size))
        return heads_of.transpose(1, 2)

    q, k, v, grad = random(heads), random(key_heads, 32), random(key_heads), random(heads, 32)
    exact = [x.float().requires_grad_() for x in (q, k, v)]
    exact_out, exact_lse = by_formula(*exact, 0.2, ids)
    gradients = torch.autograd.grad(exact_out, exact, grad.float())

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        out, found = random(heads, 32), (random(heads), random(key_heads, 32), random(key_heads))
        lse = attention.forward(q, k, v, 0.2, segments, out)
        attention.backward((grad, q, k, v, out), lse, 0.2, segments, found)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(lse, exact_lse, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip((out, *found), (exact_out, *gradients), strict=True):
        distance = (ours.float() - theirs.detach()).norm() / theirs.detach().norm()
        assert float(distance) < 0.004


def test_what_has_no_tiles_is_left_to_others() -> None:
    def tensor(size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(1, 2, 3, size, dtype=dtype)

    for size, dtype in ((64, torch.float32), (48, torch.bfloat16), (512, torch.bfloat16)):
        assert tile_attention(tensor(size, dtype), tensor(size, dtype)) is None


def test_oneDNNs_products_come_out_the_same_afterwards() -> None:
    """Both set the processor's tiles."""
    attention = tiles()
    a, b = torch.randn(40, 70).bfloat16(), torch.randn(70, 50).bfloat16()
    before = a @ b
    x = torch.randn(1, 2, 40, 32).bfloat16()
    attention.forward(x, x, x, 0.2, [(0, 0, 40)], torch.empty_like(x))
    assert torch.equal(a @ b, before)
