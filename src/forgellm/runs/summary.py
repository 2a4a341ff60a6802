"""Figures that sum a run up. Pure functions; what cannot be known is None, never invented."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median, pstdev

from forgellm.schema.run import MetricsLine

_HALF_WINDOW = 5


def progress_percentage(iteration: int, max_iterations: int) -> float:
    """From 0 to 100, with two decimals."""
    return round(100 * min(max(iteration, 0), max_iterations) / max(1, max_iterations), 2)


def eta_minutes(iterations_left: int, seconds_per_iteration: Sequence[float]) -> float | None:
    """Minutes left, from the median of recent durations: one slow iteration moves it little."""
    durations = [s for s in seconds_per_iteration if math.isfinite(s) and s >= 0]
    if iterations_left <= 0:
        return 0.0
    return iterations_left * median(durations) / 60 if durations else None


def average_tokens_per_second(lines: Sequence[MetricsLine]) -> float | None:
    """Tokens trained over the time they took; each report counts by its tokens."""
    tokens, seconds, before = 0, 0.0, 0
    for line in lines:
        new = line.trained_tokens - before
        if line.tokens_per_second and new > 0:
            tokens += new
            seconds += new / line.tokens_per_second
            before = line.trained_tokens
    return tokens / seconds if seconds > 0 else None


def peak_memory_gb(lines: Sequence[MetricsLine]) -> float | None:
    return max((line.memory_usage_gb for line in lines if line.memory_usage_gb), default=None)


def training_stability(losses: Sequence[float | None]) -> float | None:
    """How smooth the loss curve is: 1 without noise, towards 0 with more of it.

    `1 / (1 + n)`, where `n` is the standard deviation of the losses around their centred moving
    average (11 points, fewer near the ends) divided by the mean loss. A straight fall has no noise,
    however steep. None for fewer than three losses.
    """
    values = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    if len(values) < 3:
        return None
    residuals = []
    for i, value in enumerate(values):
        half = min(_HALF_WINDOW, i, len(values) - 1 - i)
        if half:  # the two ends have no neighbours to compare with
            residuals.append(value - fmean(values[i - half : i + half + 1]))
    level = fmean(abs(value) for value in values)
    return 1 / (1 + pstdev(residuals, 0.0) / level) if level else 1.0


def generalisation_gap(lines: Sequence[MetricsLine], num_validations: int = 3) -> float | None:
    """Validation loss minus the mean training loss since the validation before it.

    Averaged over the last `num_validations`. None until there is a validation after a report.
    """
    gaps: list[float] = []
    training: list[float] = []
    for line in lines:
        if line.training_loss is not None:
            training.append(line.training_loss)
        if line.validation_loss is not None and training:
            gaps.append(line.validation_loss - fmean(training))
            training = []
    return fmean(gaps[-num_validations:]) if gaps else None
