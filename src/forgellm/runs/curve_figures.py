"""Figures that sum a whole curve up: those of `summary`, for a million lines at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgellm.runs.curve import Curve, Numbers

_HALF_WINDOW = 5
_PIECE_LINES = 1 << 15


def summary_of(curve: Curve) -> dict[str, Any]:
    """By their names in the API. What cannot be known is None."""
    validated = curve.select(curve.validated)
    validation = validated.column("validation_loss")
    is_best = validation == validation.min(initial=np.inf)
    return {
        **speed_and_memory(curve),
        "training_stability": training_stability(curve),
        "final_loss": _last(curve.column("training_loss")),
        "best_validation_loss": _last(validation[is_best]),
        "best_iteration": _lowest(validated.column("iteration")[is_best]),
        "generalisation_gap": generalisation_gap(curve),
        "trained_tokens": _last_tokens(curve),
    }


def speed_and_memory(curve: Curve) -> dict[str, float | None]:
    """Both in one pass: reading a long log's records is most of the work."""
    tokens, seconds, before, peak = 0, 0.0, 0, 0.0
    columns = ("tokens_per_second", "trained_tokens", "memory_usage_gb")
    for speed, trained, memory in curve.pieces(*columns):
        has_speed = ~np.isnan(speed) & (speed != 0)
        if not has_speed.all():
            speed, trained = speed[has_speed], trained[has_speed]
        highest = np.maximum.accumulate(np.append(before, trained))
        new = trained - highest[:-1]
        is_new = new > 0
        tokens += int(new[is_new].sum())
        seconds += float((new[is_new] / speed[is_new]).sum())
        before = int(highest[-1])
        peak = max(peak, float(memory[memory > 0].max(initial=0)))
    return {
        "avg_tokens_per_second": tokens / seconds if seconds > 0 else None,
        "peak_memory_gb": peak or None,
    }


def training_stability(curve: Curve) -> float | None:
    values = curve.column("training_loss")
    if not (is_finite := np.isfinite(values)).all():
        values = values[is_finite]
    total = len(values)
    if total < 3:
        return None
    squares = absolute = 0.0
    for half in range(1, min(_HALF_WINDOW, (total - 1) // 2 + 1)):
        # Near the ends the window is only as wide as the way to the end.
        for place in {half, total - 1 - half}:
            squares += (values[place] - values[place - half : place + half + 1].mean()) ** 2
    weights = np.full(2 * _HALF_WINDOW + 1, 1 / (2 * _HALF_WINDOW + 1))
    for first in range(0, total - 2 * _HALF_WINDOW, _PIECE_LINES):
        piece = values[first : first + _PIECE_LINES + 2 * _HALF_WINDOW]
        residuals = piece[_HALF_WINDOW:-_HALF_WINDOW] - np.convolve(piece, weights, "valid")
        squares += float(residuals @ residuals)
    noise = float(np.sqrt(squares / (total - 2)))
    for first in range(0, total, _PIECE_LINES):
        absolute += float(np.abs(values[first : first + _PIECE_LINES]).sum())
    level = absolute / total
    return 1 / (1 + noise / level) if level else 1.0


def generalisation_gap(curve: Curve, num_validations: int = 3) -> float | None:
    training, ends = curve.column("training_loss"), curve.validated + 1
    validation = curve.select(curve.validated).column("validation_loss")
    gaps: list[float] = []
    for number in reversed(range(len(ends))):
        since = training[ends[number - 1] if number else 0 : ends[number]]
        if len(known := since[~np.isnan(since)]):
            gaps.append(float(validation[number] - known.mean()))
        if len(gaps) == num_validations:
            break
    return sum(gaps) / len(gaps) if gaps else None


def _last(values: Numbers) -> float | None:
    """The last that is not NaN."""
    for first in range(len(values), 0, -_PIECE_LINES):
        piece = values[max(0, first - _PIECE_LINES) : first]
        if len(known := piece[~np.isnan(piece)]):
            return float(known[-1])
    return None


def _lowest(values: NDArray[np.int64]) -> int | None:
    return int(values.min()) if len(values) else None


def _last_tokens(curve: Curve) -> int | None:
    if not len(curve):
        return None
    return int(curve.select(np.array([len(curve) - 1])).column("trained_tokens")[0])
