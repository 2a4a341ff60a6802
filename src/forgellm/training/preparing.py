"""What others see of a run while its dataset is tokenised."""

from __future__ import annotations

import time
from collections.abc import Callable

from forgellm.data.progress import Tokenised
from forgellm.paths import iso_utc
from forgellm.runs.store import Run
from forgellm.schema.run import Tokenising

_WRITE_SECONDS = 1.0


def telling_state(run: Run) -> Callable[[Tokenised], None]:
    """Writes the figure it is called with into the run's state, once a second."""
    written_at = 0.0

    def tell(figure: Tokenised) -> None:
        nonlocal written_at
        now = time.monotonic()
        if now - written_at < _WRITE_SECONDS:
            return
        written_at = now
        update = {"tokenising": Tokenising(**figure._asdict()), "heartbeat": iso_utc()}
        run.write_state(run.written_state().model_copy(update=update))

    return tell
