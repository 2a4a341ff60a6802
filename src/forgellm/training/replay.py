"""`replay: auto`: more general text among the rows once a run forgets more than it may."""

from __future__ import annotations

import logging
from collections.abc import Callable

from forgellm.schema.evaluation import EvaluationLine

FIRST_SHARE = 0.05
HIGHEST_SHARE = 0.5
log = logging.getLogger(__name__)


class ReplayRule:
    """Doubles the share of replay, up to a half, wherever general loss has risen by more than the
    bound since the start and has not fallen since the measurement before."""

    def __init__(self, share: float, bound: float, any_of: Callable[[bool], bool]) -> None:
        """`bound` is in nats per token; `any_of` says whether it is so for any of the processes that
        train together, which must decide alike."""
        self._share, self._bound, self._any_of = share, bound, any_of
        self._last_rise = float("-inf")

    def observe(self, line: EvaluationLine) -> float | None:
        """The share of replay from here on, or None if it stays."""
        rise = _rise(line)
        is_too_much = rise is not None and rise > self._bound and rise >= self._last_rise
        raised = min(HIGHEST_SHARE, max(FIRST_SHARE, 2 * self._share))
        is_raised = self._any_of(is_too_much) and raised > self._share
        if is_raised:
            log.warning(
                "general loss is %.3f nats above that at the start: from iteration %d on, %.1f %% of"
                " the rows are replay (before: %.1f %%)",
                rise,
                line.iteration + 1,
                100 * raised,
                100 * self._share,
            )
        self.recall(line.model_copy(update={"replay_share": raised if is_raised else None}))
        return raised if is_raised else None

    def recall(self, line: EvaluationLine) -> None:
        """Take up what was measured and decided before."""
        if (rise := _rise(line)) is not None:
            self._last_rise = rise
        if line.replay_share is not None:
            self._share = line.replay_share


def _rise(line: EvaluationLine) -> float | None:
    """The largest rise of a general loss since the start, in nats per token."""
    return max((item.change for item in line.general if item.change is not None), default=None)
