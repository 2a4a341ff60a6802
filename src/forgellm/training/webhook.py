"""Tells an address of the user's how a run fares: a POST of JSON on each event."""

from __future__ import annotations

import logging
import time
from typing import Any, Literal
from urllib.parse import urlsplit

from forgellm.errors import ConfigError
from forgellm.paths import iso_utc
from forgellm.runs.checkpoints import best_iterations, list_checkpoints
from forgellm.runs.store import Run
from forgellm.schema.run import RunState
from forgellm.training.side_thread import SideThread

Event = Literal["completed", "failed", "stopped", "overfitting"]

TIMEOUT_SECONDS = 5.0
RETRY_SECONDS = (1.0, 3.0)
_log = logging.getLogger(__name__)


class Webhook:
    """Delivers in a thread, each event up to three times. A failure is logged and nothing more."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError for anything but http and https."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError.one("webhook_url", "must begin with http:// or https://")
        self._url = url
        # The rest of the address often holds a secret, so only this is logged.
        self._host = parts.hostname
        self.thread = SideThread("the webhook")

    def send(self, event: Event, run: Run, state: RunState) -> None:
        """`state` is copied: the loop goes on changing its own."""
        then = state.model_copy()
        self.thread.do(lambda: self._deliver(event_payload(event, run, then)))

    def close(self) -> None:
        """Nothing more will be sent. Does not wait."""
        self.thread.end_with(lambda: None)

    def _deliver(self, payload: dict[str, Any]) -> None:
        problem = ""
        for wait in (*RETRY_SECONDS, None):
            problem, is_worth_another = self._post(payload)
            if not problem:
                return
            if wait is None or not is_worth_another:
                break
            time.sleep(wait)
        _log.warning(
            "the webhook at %s did not take the event %s: %s", self._host, payload["event"], problem
        )

    def _post(self, payload: dict[str, Any]) -> tuple[str, bool]:
        """What went wrong, if anything, and whether another try may help."""
        import httpx2  # only runs with a webhook need it

        try:
            with (
                httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client,
                client.stream("POST", self._url, json=payload) as reply,  # its body is of no use
            ):
                status = reply.status_code
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            return type(error).__name__, True
        if 200 <= status < 300:
            return "", False
        return f"status {status}", status == 429 or status >= 500


def event_payload(event: Event, run: Run, state: RunState) -> dict[str, Any]:
    """What is sent: the run, and where it is."""
    record = run.record()
    return {
        "event": event,
        "training_id": record.training_id,
        "name": record.name,
        "training_type": record.training_type,
        "model_name": record.recipe.model_name,
        "dataset": record.recipe.dataset,
        "output_dir": run.output_dir,
        "iteration": state.iteration,
        "max_iterations": record.recipe.max_iterations,
        "training_seconds": state.training_seconds,
        "overfitting_iteration": state.overfitting_iteration,
        "best_checkpoints": best_iterations(list_checkpoints(run.folder)),
        "error": state.error,
        "timestamp": iso_utc(),
    }
