"""The routes around runs, the trash, the queue and chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from forgellm.sdk.replies import Reply
from forgellm.sdk.transport import Transport


class RunRoutes(Transport):
    """`name` is a run's name or its training_id."""

    def list_runs(
        self,
        *,
        phase: str | None = None,
        training_type: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> Reply:
        """Newest first: `runs`, and in `total` how many match."""
        return self._get("/api/runs", phase=phase, type=training_type, limit=limit, offset=offset)

    def get_run(self, name: str) -> Reply:
        """Its `record`, `state`, `checkpoints` and `performance`."""
        return self._get(f"/api/runs/{_part(name)}")

    def run_metrics(
        self, name: str, *, offset: int | None = None, since_seq: int | None = None
    ) -> Reply:
        """`metrics`, and in `next_offset` where to go on."""
        return self._get(f"/api/runs/{_part(name)}/metrics", offset=offset, since_seq=since_seq)

    def run_log(self, name: str, *, lines: int | None = None) -> Reply:
        """The end of the trainer's log."""
        return self._get(f"/api/runs/{_part(name)}/log", lines=lines)

    def run_evaluations(self, name: str) -> Reply:
        """What it measured of its model, and what the model answered, at each checkpoint."""
        return self._get(f"/api/runs/{_part(name)}/evaluations")

    def resume_run(self, name: str, *, allow_changed_base: bool = False) -> Reply:
        """Continue it from its newest intact checkpoint."""
        body = {"allow_changed_base": True} if allow_changed_base else None
        return self._post(f"/api/runs/{_part(name)}/resume", body)

    def clone_run(self, name: str, overrides: Mapping[str, Any] | None = None) -> Reply:
        """Its recipe with other values in it, for `start_training`; nothing is started."""
        body = {"overrides": dict(overrides or {})}
        return self._post(f"/api/runs/{_part(name)}/clone", body)

    def rename_run(self, name: str, new_name: str) -> Reply:
        return self._post(f"/api/runs/{_part(name)}/rename", {"name": new_name})

    def delete_run(self, name: str) -> Reply:
        """Move it to the trash."""
        return self._delete(f"/api/runs/{_part(name)}")

    def delete_checkpoint(self, name: str, iteration: int) -> Reply:
        """For good; the run must not be training."""
        return self._delete(f"/api/runs/{_part(name)}/checkpoints/{iteration}")

    def compare_runs(self, names: Sequence[str]) -> Reply:
        return self._get("/api/compare", runs=",".join(names))

    def list_trash(self) -> Reply:
        return self._get("/api/trash")

    def restore_run(self, name: str) -> Reply:
        """`name` is that of `list_trash`."""
        return self._post("/api/trash/restore", {"name": name})

    def empty_trash(self) -> Reply:
        """Delete for good what is in the trash."""
        return self._delete("/api/trash")

    def queue(self) -> Reply:
        """Runs that wait for their turn."""
        return self._get("/api/queue")

    def leave_queue(self, name: str) -> Reply:
        return self._delete(f"/api/queue/{_part(name)}")

    def start_chain(self, stages: Sequence[Mapping[str, Any]], **fields: Any) -> Reply:
        """Train one recipe after another, each from the run before it. `fields` are the stages'
        defaults, and in `chain` a name."""
        return self._post("/api/chains", {"stages": [dict(stage) for stage in stages], **fields})

    def list_chains(self) -> Reply:
        return self._get("/api/chains")

    def get_chain(self, name: str) -> Reply:
        return self._get(f"/api/chains/{_part(name)}")

    def continue_chain(self, name: str) -> Reply:
        """Go on with the stage that failed or was stopped."""
        return self._post(f"/api/chains/{_part(name)}/continue")

    def delete_chain(self, name: str) -> Reply:
        """Forget it; its runs stay."""
        return self._delete(f"/api/chains/{_part(name)}")


def _part(name: str) -> str:
    """`name` as one part of a path."""
    return quote(name, safe="")
