"""Who is told of a run beyond its folder: the trackers and the webhook that its recipe names."""

from __future__ import annotations

from types import TracebackType

from forgellm.errors import ForgeError
from forgellm.runs.store import Run
from forgellm.schema.run import MetricsLine, RunState
from forgellm.training.trackers import Reporting
from forgellm.training.webhook import Webhook


class Followers:
    """Lasts as long as the run trains. Most recipes name nobody, and then it does nothing."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._recipe = run.record().recipe
        self._webhook = Webhook(self._recipe.webhook_url) if self._recipe.webhook_url else None
        self._reporting: Reporting | None = None
        self._is_overfitting = False

    def open_trackers(self, state: RunState) -> None:
        """Once it is certain that the run will train. `state` is that before the first update."""
        self._is_overfitting = state.overfitting  # a resumed run has told of it before
        if self._recipe.report_to:
            self._reporting = Reporting(self._run, self._recipe.report_to)

    def observe(self, line: MetricsLine, state: RunState) -> None:
        if self._reporting:
            self._reporting.report(line)
        if self._webhook and state.overfitting and not self._is_overfitting:
            self._is_overfitting = True
            self._webhook.send("overfitting", self._run, state)

    def __enter__(self) -> Followers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell how it ended. Does not wait for the telling: the run's lock is still held."""
        state = self._run.written_state()
        if isinstance(error, ForgeError):
            # On a full disk the state itself may not say so.
            state = state.model_copy(update={"phase": "failed", "error": error.to_dict()})
        if self._reporting:
            self._reporting.close(state.phase)
        if self._webhook:
            phase = state.phase
            if phase == "completed" or phase == "failed" or phase == "stopped":
                self._webhook.send(phase, self._run, state)
            self._webhook.close()
