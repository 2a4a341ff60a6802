"""When validation says that a run has begun to memorise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean

from forgellm.schema.run import MetricsLine

SMOOTHING = 3
_TRAINING_LINES = 20


class OverfittingMonitor:
    """Flags a validation whose loss exceeds the best so far by more than `threshold` (a fraction),
    or by which the smoothed generalisation gap has grown by more than that fraction of the best.

    The gap is validation minus training loss, each a mean of its latest values; its growth is
    counted from its smallest value so far, or from zero: while losses fall fast, the mean of the
    training losses lags behind, and the gap rises from below zero as they flatten out.
    """

    def __init__(self, threshold: float, patience: int) -> None:
        self._threshold = threshold
        self._patience = patience
        self._training: list[float] = []
        self._validation: list[float] = []
        self._smallest_gap = math.inf
        self._flagged_in_a_row = 0
        self.iteration: int | None = None

    def replay(self, lines: Iterable[MetricsLine]) -> None:
        """Take in what a resumed run had measured before."""
        for line in lines:
            self.observe(line)

    def observe(self, line: MetricsLine) -> None:
        if line.training_loss is not None:
            self._training = [*self._training, line.training_loss][-_TRAINING_LINES:]
        if line.validation_loss is None:
            return
        self._validation.append(line.validation_loss)
        if self._is_flagged():
            self._flagged_in_a_row += 1
            if self.iteration is None:
                self.iteration = line.iteration
        else:
            self._flagged_in_a_row = 0

    def _is_flagged(self) -> bool:
        best = min(self._validation)
        excess = self._validation[-1] > best * (1 + self._threshold)
        if not self._training or len(self._validation) < SMOOTHING:
            return excess
        gap = fmean(self._validation[-SMOOTHING:]) - fmean(self._training)
        self._smallest_gap = min(self._smallest_gap, max(gap, 0.0))
        return excess or gap - self._smallest_gap > self._threshold * best

    @property
    def flagged(self) -> bool:
        return self.iteration is not None

    @property
    def should_stop(self) -> bool:
        return 0 < self._patience <= self._flagged_in_a_row
