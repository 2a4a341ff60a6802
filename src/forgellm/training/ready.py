"""A run that could take its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from forgellm.data.prepared import PreparedData
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import TrainEngine
from forgellm.evaluation.suite import Suite
from forgellm.training.plan import Plan


@dataclass(frozen=True)
class Ready:
    """All that a run needs to train. `measured` are the figures of the rehearsal."""

    plan: Plan
    engine: TrainEngine
    tokenizer: Tokenizer
    data: PreparedData
    measured: dict[str, float]
    suite: Suite
    should_stop: Callable[[], bool]

    @property
    def warnings(self) -> list[str]:
        """All that the user is to know of before the first update, a sentence or two each."""
        return [*self.plan.warnings, *self.data.warnings, *self.engine.warnings]
