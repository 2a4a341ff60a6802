"""Figures that sum a whole curve up: those of `summary`, for a million lines at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgellm.runs.blocks import HALF_WINDOW, has_speed, moving_residuals, seconds_of
from forgellm.runs.curve import Curve
from forgellm.runs.curve_points import validated

_NUM_EDGE = 2 * HALF_WINDOW


def summary_of(curve: Curve) -> dict[str, Any]:
    """By their names in the API. What cannot be known is None. Raises IndexIsWrong."""
    blocks = curve.blocks
    best = blocks["best_validation"].min(initial=np.inf)
    is_best = (blocks["best_validation"] == best) & (blocks["num_validated"] > 0)
    return {
        "avg_tokens_per_second": average_tokens_per_second(curve),
        "peak_memory_gb": float(blocks["peak_memory"].max(initial=0)) or None,
        "training_stability": training_stability(blocks),
        "final_loss": _last_known(blocks["last_loss"]),
        "best_validation_loss": float(best) if is_best.any() else None,
        "best_iteration": _lowest(blocks["best_iteration"][is_best]),
        "generalisation_gap": generalisation_gap(curve),
        "trained_tokens": _last_tokens(curve),
    }


def average_tokens_per_second(curve: Curve) -> float | None:
    with_speeds = np.flatnonzero(curve.blocks["num_speeds"])
    if not len(with_speeds):
        return None
    first_speed, first_trained, most_trained, later_seconds = (
        curve.blocks[name][with_speeds]
        for name in ("first_speed", "first_trained", "most_trained", "seconds")
    )
    highest = np.maximum.accumulate(np.append(0, most_trained))
    first = first_trained - highest[:-1]
    seconds = float((later_seconds + first / first_speed)[first >= 0].sum())
    for number in np.flatnonzero(first < 0):  # trained again, so that it is to be looked at
        lines = curve.select(np.arange(*curve.starts[with_speeds[number] :][:2]))
        speed, trained = lines.columns("tokens_per_second", "trained_tokens")
        known = has_speed(speed)
        seconds += seconds_of(int(highest[number]), speed[known], trained[known])
    return int(highest[-1]) / seconds if seconds > 0 else None


def training_stability(blocks: NDArray[Any]) -> float | None:
    total = int(blocks["num_finite"].sum())
    if total < 3:
        return None
    values, counts = _edges(blocks)
    squares = float(blocks["squares"].sum())
    for half in range(1, min(HALF_WINDOW, (total - 1) // 2 + 1)):
        # Near the ends the window is only as wide as the way to the end.
        for place in {half, len(values) - 1 - half}:
            squares += (values[place] - values[place - half : place + half + 1].mean()) ** 2
    residuals = moving_residuals(values)[counts[HALF_WINDOW:-HALF_WINDOW]]
    squares += float(residuals @ residuals)
    noise = float(np.sqrt(squares / (total - 2)))
    level = float(blocks["sum_absolute"].sum()) / total
    return 1 / (1 + noise / level) if level else 1.0


def _edges(blocks: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The finite losses that the blocks have kept, in order, and whether each is one whose window
    is among them. The others have been counted in their block, where there were losses between."""
    values = np.hstack([blocks["head"], blocks["tail"]])
    counts = ~np.isnan(values)
    kept = counts.copy()
    counts[blocks["num_finite"] > 2 * _NUM_EDGE, HALF_WINDOW : 3 * HALF_WINDOW] = False
    return values[kept], counts[kept]


def generalisation_gap(curve: Curve, num_validations: int = 3) -> float | None:
    gaps: list[float] = []
    count = int(curve.blocks["num_validated"].sum())
    for number in reversed(range(count)):
        ranks = np.arange(max(0, number - 1), number + 1)
        places = validated(curve, ranks).tolist()
        begin = places[0] + 1 if number else 0
        lines = curve.select(np.arange(begin, places[-1] + 1))
        training, validation = lines.columns("training_loss", "validation_loss")
        if len(known := training[~np.isnan(training)]):
            gaps.append(float(validation[-1] - known.mean()))
        if len(gaps) == num_validations:
            break
    return sum(gaps) / len(gaps) if gaps else None


def _last_known(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else None


def _lowest(values: NDArray[np.int64]) -> int | None:
    return int(values.min()) if len(values) else None


def _last_tokens(curve: Curve) -> int | None:
    if not len(curve):
        return None
    (tokens,) = curve.select(np.array([len(curve) - 1])).columns("trained_tokens")
    return int(tokens[0])
