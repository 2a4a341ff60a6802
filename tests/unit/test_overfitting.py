"""When a run is flagged, and when it stops."""

from __future__ import annotations

from collections.abc import Iterable

from forgellm.schema.run import MetricsLine
from forgellm.training.overfitting import OverfittingMonitor


def watch(
    losses: Iterable[tuple[float, float]], threshold: float = 0.1, patience: int = 0
) -> OverfittingMonitor:
    """`losses` are pairs of training and validation loss."""
    monitor = OverfittingMonitor(threshold, patience)
    monitor.replay(
        MetricsLine(
            seq=i, iteration=10 * i, training_loss=t, validation_loss=v, timestamp="2026-01-01"
        )
        for i, (t, v) in enumerate(losses)
    )
    return monitor


def test_falling_losses_are_not_flagged() -> None:
    assert not watch([(3.0, 3.1), (2.8, 2.9), (2.6, 2.7), (2.5, 2.6)]).flagged


def test_validation_above_its_best_by_more_than_the_threshold_is_flagged() -> None:
    monitor = watch([(3.0, 3.0), (2.5, 2.5), (2.4, 2.7), (2.3, 2.8)])
    assert monitor.flagged
    assert monitor.iteration == 30  # 2.7 is within 10 % of 2.5, 2.8 is not


def test_the_first_flagged_iteration_is_kept() -> None:
    monitor = watch([(3.0, 2.0), (2.5, 2.5), (2.4, 2.0), (2.3, 2.9)])
    assert monitor.iteration == 10


def test_a_gap_that_grows_is_flagged_though_validation_stands_still() -> None:
    steady = [(3.0, 3.0)] * 3
    memorising = [(3.0 - 0.4 * i, 3.0) for i in range(1, 6)]
    monitor = watch([*steady, *memorising])
    assert monitor.flagged and monitor.iteration is not None and monitor.iteration > 20


def test_patience_counts_flagged_validations_in_a_row() -> None:
    rising = [(1.0, 1.0), (1.0, 1.2), (1.0, 1.0), (1.0, 1.2)]
    assert not watch(rising, patience=2).should_stop
    assert watch([*rising, (1.0, 1.3)], patience=2).should_stop
    assert not watch([*rising, (1.0, 1.3)], patience=0).should_stop
