"""Packed attention on GPUs: what the kernel is handed, tried here with one that follows its contract
in plain operations, and the kernel itself where there is a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgellm.engines.torch import attention, gpu_attention
from forgellm.engines.torch.attention import forgellm_attention, packed_layout

IDS = torch.tensor([[0] * 5 + [1] * 20 + [2] * 7, [0] * 1 + [1] * 31])
HEADS, KEY_HEADS, SIZE = 4, 2, 16
WINDOWS = [None, 1, 6]


def by_contract(
    query: Tensor, key: Tensor, value: Tensor, q_ends: Tensor, k_ends: Tensor, *most: int,
    scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """As torch documents `varlen_attn`: [tokens, heads, size] of sequences that end at `q_ends`."""
    assert q_ends.dtype == torch.int32 and torch.equal(q_ends, k_ends) and enable_gqa
    assert most == (int(q_ends.diff().max()),) * 2 and len(query) == int(q_ends[-1])
    groups, out = query.shape[1] // key.shape[1], torch.empty_like(query)
    left, right = window_size
    for start, stop in zip(q_ends.tolist(), q_ends[1:].tolist(), strict=False):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        place = torch.arange(stop - start)
        ahead = place[None] - place[:, None]
        seen = (ahead <= right) & ((left < 0) | (-ahead <= left))
        scores = ((q @ k.mT) * scale).masked_fill(~seen, float("-inf"))
        out[start:stop] = (scores.softmax(-1) @ v).transpose(0, 1)
    return out


def heads(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, count, IDS.shape[1], SIZE) for count in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in sizes]


def attended(tensors: list[Tensor], window: int | None) -> list[Tensor]:
    """The output, and the gradients of a sum of it."""
    packed = packed_layout(IDS.to(tensors[0].device))
    out, _ = forgellm_attention(nn.Identity(), *tensors, None, packed=packed, sliding_window=window)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype)
    return [out, *torch.autograd.grad((out * weights.view_as(out)).sum(), tensors)]


@pytest.mark.parametrize("window", WINDOWS)
def test_each_document_attends_to_itself_alone(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = attended(heads(), window)
    calls: list[Any] = []

    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args)
        return by_contract(*args, **kwargs)

    monkeypatch.setattr(gpu_attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "has_flash_attention", lambda *_: True)
    monkeypatch.setattr(attention, "_is_on_cpu", lambda _: False)
    for found, wanted in zip(attended(heads(), window), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert calls


@pytest.mark.parametrize("window", WINDOWS)
def test_masks_of_gpus_without_the_kernel_say_the_same(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = attended(heads(), window)
    monkeypatch.setattr(attention, "_is_on_cpu", lambda _: False)
    for found, wanted in zip(attended(heads(), window), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_processors_and_float32_have_no_such_kernel() -> None:
    query, _, value = heads()
    assert not gpu_attention.has_flash_attention(query, value)
    assert not gpu_attention.has_flash_attention(query.bfloat16(), value.bfloat16())


@pytest.mark.gpu
@pytest.mark.parametrize("window", WINDOWS)
def test_the_kernel_says_what_a_mask_says(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = heads("cuda", torch.bfloat16)
    assert gpu_attention.has_flash_attention(tensors[0], tensors[2])
    found = attended(tensors, window)
    monkeypatch.setattr(attention, "has_flash_attention", lambda *_: False)
    for own, wanted in zip(found, attended(heads("cuda", torch.bfloat16), window), strict=True):
        torch.testing.assert_close(own, wanted, rtol=0.05, atol=0.02)
