"""What comes bit by bit: the text of an answer, and the updates of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from forgellm.errors import ModelServerUnavailable, NoActiveTraining
from forgellm.sdk.replies import Reply, error_of

if TYPE_CHECKING:
    from forgellm.sdk.client import ForgeLLMClient


def read_items(lines: Iterable[str]) -> Iterator[str]:
    """The texts of a streamed answer, one JSON item a line. Raises ForgeError."""
    for line in lines:
        if not line.strip():
            continue
        item = json.loads(line)
        if item["type"] == "error":
            raise error_of(item)
        if item["type"] == "done":
            return
        if item["text"]:  # nothing while a character is incomplete
            yield item["text"]
    raise ModelServerUnavailable("The answer broke off")


def follow_training(
    client: ForgeLLMClient, training_id: str | None, poll_seconds: float
) -> Iterator[Reply]:
    """See `ForgeLLMClient.training_events`."""
    wanted = training_id or _checked(client.get_training_status())["training_id"]
    if wanted is None:
        raise NoActiveTraining("There is no run to follow")
    max_iterations = _checked(client.get_run(wanted))["run"]["max_iterations"]
    offset = 0
    while True:
        # The state first: a trainer writes its last line before its last state.
        status = _checked(client.get_training_status())
        is_current = status["is_training"] and status["training_id"] == wanted
        details = None if is_current else _checked(client.get_run(wanted))
        has_more = True
        while has_more:
            read = _checked(client.run_metrics(wanted, offset=offset))
            offset, has_more = read["next_offset"], read["has_more"]
            for line in read["metrics"]:
                yield _update(wanted, line, max_iterations, status if is_current else {})
        if details is not None and (end := _end(wanted, details)):
            yield end
            return
        time.sleep(poll_seconds)


def _update(training_id: str, line: Reply, max_iterations: int, status: Reply) -> Reply:
    return {
        "event": "training_update",
        "training_id": training_id,
        **line,
        "max_iterations": max_iterations,
        "progress_percentage": round(100 * line["iteration"] / max_iterations, 2),
        "eta_minutes": status.get("eta_minutes"),
        "processes": status.get("processes", []),
    }


def _end(training_id: str, details: Reply) -> Reply | None:
    """The last event of a run that has ended."""
    run, state = details["run"], details["state"]
    common = {"training_id": training_id, "output_dir": run["output_dir"], "phase": state["phase"]}
    if state["phase"] in ("completed", "stopped"):
        return {
            "event": "training_complete",
            "success": True,
            **common,
            "stopped": state["phase"] == "stopped",
            "stopped_early": state["stopped_early"],
            "final_iteration": state["iteration"],
            "final_loss": details["performance"]["final_loss"],
            "training_time_minutes": state["training_seconds"] / 60,
            "best_checkpoints": details["best_checkpoints"],
        }
    # A trainer that vanished has ended when the server has written down what became of it.
    if state["phase"] in ("failed", "interrupted") and state["error"]:
        return {
            "event": "training_error",
            **state["error"],
            **common,
            "iteration": state["iteration"],
        }
    return None


def _checked(reply: Reply) -> Reply:
    if not reply["success"]:
        raise error_of(reply)
    return reply
