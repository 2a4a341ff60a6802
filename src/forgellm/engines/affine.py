"""MLX's affine quantisation in numpy: what `mx.quantize` computes, bit for bit, without MLX.

The numbers of a row are rounded in groups. Each group has a scale and a bias; a number is stored as
q of `bits` bits and stands for q * scale + bias. The end of the group that is further from zero is
met exactly, and zero falls on a whole q, so it is met as well.

Letters: N rows, C columns, G = C / group_size groups, W = C * bits / 32 words.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SMALLEST_SCALE = np.float32(1e-7)


class Quantised(NamedTuple):
    """words [N, W] uint32, the first number in the lowest bits; scales and biases [N, G] float32."""

    words: NDArray[np.uint32]
    scales: NDArray[np.float32]
    biases: NDArray[np.float32]


def quantise(rows: NDArray[np.float32], bits: int, group_size: int) -> Quantised:
    """rows [N, C]; `bits` is 4 or 8, and C a multiple of `group_size`."""
    groups = rows.reshape(len(rows), -1, group_size)
    low, high = groups.min(-1), groups.max(-1)
    num_steps = np.float32(2**bits - 1)
    low_is_edge = np.abs(low) > np.abs(high)
    scales = np.maximum((high - low) / num_steps, _SMALLEST_SCALE)
    scales = np.where(low_is_edge, scales, -scales)
    edges = np.where(low_is_edge, low, high)
    at_edge = np.rint(edges / scales)
    reaches = at_edge != 0
    scales = np.divide(edges, at_edge, out=scales, where=reaches)
    biases = np.where(reaches, edges, np.float32(0))
    steps = groups - biases[..., None]
    steps /= scales[..., None]
    np.rint(steps, out=steps)
    np.clip(steps, 0, num_steps, out=steps)
    numbers: NDArray[np.uint8] = steps.astype(np.uint8).reshape(len(rows), -1)
    if bits == 4:
        numbers = numbers[:, 0::2] | np.left_shift(numbers[:, 1::2], 4, dtype=np.uint8)
    return Quantised(np.ascontiguousarray(numbers).view("<u4"), scales, biases)


def dequantise(stored: Quantised, bits: int) -> NDArray[np.float32]:
    """The numbers [N, C] that the steps stand for."""
    bytes_of_rows = stored.words.view(np.uint8)
    steps = bytes_of_rows
    if bits == 4:
        steps = np.stack([bytes_of_rows & 15, bytes_of_rows >> 4], axis=-1)
    groups = steps.reshape(*stored.scales.shape, -1).astype(np.float32)
    groups *= stored.scales[..., None]
    groups += stored.biases[..., None]
    return groups.reshape(len(groups), -1)
