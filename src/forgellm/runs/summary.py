"""Figures that sum a run up. Pure functions; what cannot be known is None, never invented.

N  lines of a table
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from forgellm.schema.figures import Performance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from forgellm.runs.curve import Table

_HALF_WINDOW = 5
_NUM_GAPS = 3


def progress_percentage(iteration: int, max_iterations: int) -> float:
    """From 0 to 100, with two decimals."""
    return round(100 * min(max(iteration, 0), max_iterations) / max(1, max_iterations), 2)


def eta_minutes(iterations_left: int, seconds_per_iteration: Sequence[float]) -> float | None:
    """Minutes left, from the median of recent durations: one slow iteration moves it little."""
    durations = [s for s in seconds_per_iteration if math.isfinite(s) and s >= 0]
    if iterations_left <= 0:
        return 0.0
    return iterations_left * median(durations) / 60 if durations else None


def performance_of(table: Table, training_seconds: float) -> Performance:
    """What sums a run up, of the lines that count."""
    if not len(table):
        return Performance()
    losses = table["training_loss"]
    known = losses[losses == losses]
    best = best_validation(table)
    return Performance(
        avg_tokens_per_second=average_tokens_per_second(table),
        peak_memory_gb=peak_memory_gb(table),
        training_stability=training_stability(losses),
        final_loss=float(known[-1]) if len(known) else None,
        best_validation_loss=best[0] if best else None,
        best_iteration=best[1] if best else None,
        generalisation_gap=generalisation_gap(table),
        trained_tokens=int(table["trained_tokens"][-1]),
        training_minutes=training_seconds / 60,
    )


def best_validation(table: Table) -> tuple[float, int] | None:
    """The lowest validation loss, and the first iteration that has it."""
    losses = table["validation_loss"]
    known = losses == losses
    if not known.any():
        return None
    best = losses[known].min()
    return float(best), int(table["iteration"][losses == best].min())


def average_tokens_per_second(table: Table) -> float | None:
    """Tokens trained over the time they took; each report counts by its tokens."""
    import numpy as np

    speed, trained = table["tokens_per_second"], table["trained_tokens"]
    has_speed = (speed == speed) & (speed != 0)
    speed, trained = speed[has_speed], trained[has_speed]
    # Tokens that are trained again after a resume do not count again.
    highest = np.maximum.accumulate(np.append(0, trained))
    new = highest[1:] - highest[:-1]
    seconds = float((new / speed).sum())
    return int(highest[-1]) / seconds if seconds > 0 else None


def peak_memory_gb(table: Table) -> float | None:
    import numpy as np

    return float(np.fmax.reduce(table["memory_usage_gb"], initial=0)) or None


def training_stability(losses: NDArray[np.float64]) -> float | None:
    """How smooth the loss curve is: 1 without noise, towards 0 with more of it.

    `1 / (1 + n)`, where `n` is the standard deviation of the losses around their centred moving
    average (11 points, fewer near the ends) divided by the mean loss. A straight fall has no noise,
    however steep. None for fewer than three losses.
    """
    import numpy as np

    values = losses[np.isfinite(losses)]
    total = len(values)
    if total < 3:
        return None
    # The two ends have no neighbours to compare with, so that their residual is 0 and not counted.
    window = np.full(2 * _HALF_WINDOW + 1, 1 / (2 * _HALF_WINDOW + 1))
    inner = values[_HALF_WINDOW : total - _HALF_WINDOW]
    squares = (
        float(((inner - np.convolve(values, window, "valid")) ** 2).sum())
        if (total >= len(window))
        else 0.0
    )
    for half in range(1, min(_HALF_WINDOW, (total - 1) // 2 + 1)):
        # Near the ends the window is only as wide as the way to the end.
        for place in {half, total - 1 - half}:
            squares += float((values[place] - values[place - half : place + half + 1].mean()) ** 2)
    level = float(np.abs(values).mean())
    return 1 / (1 + math.sqrt(squares / (total - 2)) / level) if level else 1.0


def generalisation_gaps(table: Table) -> NDArray[np.float64]:
    """[N] Of each validation its loss minus the mean training loss since the validation before it;
    NaN elsewhere, and where there is none since. The page, the picture and the API show these."""
    import numpy as np

    training = table["training_loss"]
    validated = np.flatnonzero(~np.isnan(table["validation_loss"]))
    is_known = ~np.isnan(training)
    sums = np.cumsum(np.where(is_known, training, 0))[validated]
    counts = np.cumsum(is_known)[validated]
    new_sums, new_counts = np.diff(sums, prepend=0), np.diff(counts, prepend=0)
    means = new_sums / np.where(new_counts, new_counts, np.nan)
    gaps = np.full(len(table), np.nan)
    gaps[validated] = table["validation_loss"][validated] - means
    return gaps


def generalisation_gap(table: Table, num_validations: int = _NUM_GAPS) -> float | None:
    """The mean of the last `num_validations` gaps; None until there is one."""
    gaps = generalisation_gaps(table)
    known = gaps[gaps == gaps][-num_validations:]
    return float(known.mean()) if len(known) else None
