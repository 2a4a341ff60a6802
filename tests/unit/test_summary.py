"""The figures that sum a run up, against values worked out by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from forgellm.runs.curve import table_of
from forgellm.runs.summary import (
    average_tokens_per_second,
    eta_minutes,
    generalisation_gap,
    peak_memory_gb,
    progress_percentage,
    training_stability,
)
from forgellm.schema.run import MetricsLine


def line(iteration: int, **figures: float) -> MetricsLine:
    return MetricsLine.model_validate(
        {"seq": iteration, "iteration": iteration, "timestamp": "", **figures}
    )


def test_progress_stays_between_0_and_100() -> None:
    assert [progress_percentage(i, 500) for i in (-1, 0, 150, 500, 501)] == [0, 0, 30, 100, 100]


def test_eta_is_the_median_and_never_negative() -> None:
    assert eta_minutes(30, [2.0, 2.0, 600.0]) == 1.0
    assert eta_minutes(30, []) is None
    assert eta_minutes(30, [math.nan, -3600.0]) is None
    assert eta_minutes(0, []) == 0.0
    assert eta_minutes(-5, [2.0]) == 0.0


def test_average_speed_counts_each_report_by_its_tokens() -> None:
    lines = [
        line(1, trained_tokens=100, tokens_per_second=100.0),  # one second
        line(1, validation_loss=2.0, trained_tokens=100),
        line(2, trained_tokens=1000, tokens_per_second=300.0),  # three seconds
    ]
    assert average_tokens_per_second(table_of(lines)) == pytest.approx(250.0)
    assert average_tokens_per_second(table_of([])) is None


def test_peak_memory_is_unknown_without_measurements() -> None:
    assert (
        peak_memory_gb(
            table_of([line(1, memory_usage_gb=2.5), line(2), line(3, memory_usage_gb=2.0)])
        )
        == 2.5
    )
    assert peak_memory_gb(table_of([line(1)])) is None


def test_straight_curves_are_fully_stable() -> None:
    assert training_stability(np.array([2.0] * 20)) == pytest.approx(1.0)
    assert training_stability(5.0 - 0.1 * np.arange(30)) == pytest.approx(1.0)


def test_more_noise_means_less_stability() -> None:
    rng = random.Random(3)
    noise = np.array([rng.gauss(0, 1) for _ in range(400)])
    scores = [training_stability(3 + size * noise) for size in (0.0, 0.05, 0.5, 2.0)]
    assert scores == sorted(scores, key=lambda s: -(s or 0))
    # A noise of a twentieth of a third, less what the moving average follows.
    assert scores[1] == pytest.approx(1 / (1 + 0.05 / 3), abs=0.003)
    assert 0 < (scores[-1] or 0) < 0.7


def test_stability_ignores_missing_losses_and_needs_three() -> None:
    assert training_stability(np.array([2.0, math.nan, 2.0, math.nan, 2.0])) == 1.0
    assert training_stability(np.array([2.0, 1.0])) is None


def test_gap_compares_with_the_training_since_the_last_validation() -> None:
    lines = [
        line(1, training_loss=3.0),
        line(2, training_loss=2.0),
        line(2, validation_loss=2.7),  # 0.2 above 2.5
        line(3, training_loss=2.0),
        line(3, validation_loss=2.6),  # 0.6 above 2.0
    ]
    assert generalisation_gap(table_of(lines)) == pytest.approx(0.4)
    assert generalisation_gap(table_of(lines), num_validations=1) == pytest.approx(0.6)
    assert generalisation_gap(table_of(lines[:2])) is None
