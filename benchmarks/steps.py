"""The steps of a training contender: how long each took, what it said, and what ours is given."""

from __future__ import annotations

import time
from typing import Any

import numpy as np


class StepLog:
    """Times and losses of one contender's steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.begin()

    def begin(self) -> None:
        self._started = time.perf_counter()

    def end(self) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def callback_of(log: StepLog) -> Any:
    """What tells the log of the steps of a trainer of transformers."""
    import transformers

    class Times(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            log.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            log.end()

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any, **__: Any) -> None:
            if "loss" in logs:
                log.losses.append(float(logs["loss"]))

    return Times()


def whole_rows(rows: np.ndarray[Any, Any]) -> Any:
    """Our batch of rows [B, T] that are one document each, with all but their first token to learn."""
    from forgellm.data.batches import Batch

    rows = rows.astype(np.int32)
    targets, mask = np.roll(rows, -1, axis=1), np.ones(rows.shape, np.float32)
    targets[:, -1], mask[:, -1] = 0, 0
    return Batch(rows, targets, mask, np.zeros_like(rows))
