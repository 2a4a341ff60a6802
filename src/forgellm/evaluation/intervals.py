"""How sure a measured figure is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


def wilson_interval(num_right: int, num_asked: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22, 209)."""
    share = num_right / num_asked
    spread = _Z**2 / num_asked
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / num_asked + spread / (4 * num_asked)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def error_of_mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float | None:
    """Standard error of the (weighted) mean, each value drawn by itself; None for fewer than two.

    With weights it is that of a ratio estimate (Cochran 1977, Sampling Techniques, section 6.4):
    documents of unlike lengths, each with its mean loss and its number of tokens.
    """
    count = len(values)
    if count < 2:
        return None
    x = np.asarray(values, dtype=np.float64)
    w = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    w = w / w.mean()
    centre = float((w * x).mean())
    residuals = w * (x - centre)
    return float(np.sqrt((residuals**2).sum() / (count - 1) / count))
