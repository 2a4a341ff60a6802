"""The runs of the workspace: listed, looked into, continued, copied, renamed, put into the trash."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from forgellm.envelope import JsonRoute
from forgellm.paths import Workspace
from forgellm.runs.evaluations import read_evaluations, read_samples
from forgellm.runs.log_tail import tail_log
from forgellm.runs.manage import clone_recipe, remove_checkpoint, rename_run
from forgellm.runs.metrics import offset_before, read_lines
from forgellm.runs.store import Run, find_run, select_runs
from forgellm.runs.trash import trash_run
from forgellm.schema.figures import EvaluationsReply, LogLine, LogReply, MetricsReply
from forgellm.schema.manage import (
    CloneReply,
    CloneRequest,
    RenameRequest,
    RunChangedReply,
    RunReply,
    RunsReply,
    TrashedReply,
)
from forgellm.schema.recipe import TrainingType
from forgellm.schema.run import MetricsLine, Phase, ResumeOptions
from forgellm.supervisor import resume_training
from forgellm.web.run_figures import run_changed, run_items, run_reply

RunName = Annotated[
    str, Path(min_length=1, max_length=400, description="A run's name, or its training_id.")
]
_READ_BYTES = 1 << 20
_MAX_NUMBER = 2**53


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api/runs", route_class=JsonRoute)
    _add_reading(router, workspace)
    _add_changing(router, workspace)
    return router


def _add_reading(router: APIRouter, workspace: Workspace) -> None:
    @router.get("")
    def runs(
        phase: Phase | None = None,
        training_type: Annotated[TrainingType | None, Query(alias="type")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        offset: Annotated[int, Query(ge=0, le=_MAX_NUMBER)] = 0,
    ) -> RunsReply:
        """All runs, newest first."""
        found = select_runs(workspace, phase, training_type)
        page = run_items(found[offset : offset + limit])
        return RunsReply(runs=page, total=len(found))

    @router.get("/{name}")
    def inspect(name: RunName) -> RunReply:
        """Everything that is known about a run, but for its curve."""
        return run_reply(find_run(workspace, name))

    @router.get("/{name}/metrics")
    def metrics(
        name: RunName,
        offset: Annotated[int, Query(ge=0, le=_MAX_NUMBER)] = 0,
        since_seq: Annotated[int, Query(ge=0, le=_MAX_NUMBER)] = 0,
    ) -> MetricsReply:
        """Lines of the metrics log from byte `offset` on, and after number `since_seq`.

        A reply holds about 4,000 lines at most; `has_more` says whether to ask again.
        """
        return _read_metrics(find_run(workspace, name), offset, since_seq)

    @router.get("/{name}/evaluations")
    def evaluations(name: RunName) -> EvaluationsReply:
        """What the run measured of its model before training and at each checkpoint, and the
        answers it gave to the recipe's `sample_prompts`."""
        folder = find_run(workspace, name).folder
        return EvaluationsReply(evaluations=read_evaluations(folder), samples=read_samples(folder))

    @router.get("/{name}/log")
    def log(name: RunName, lines: Annotated[int, Query(ge=1, le=5000)] = 200) -> LogReply:
        """The end of the trainer's log."""
        shown = tail_log(find_run(workspace, name), lines)
        return LogReply(lines=[LogLine(**line._asdict()) for line in shown])


def _add_changing(router: APIRouter, workspace: Workspace) -> None:
    @router.post("/{name}/resume")
    def resume(name: RunName, body: ResumeOptions | None = None) -> RunChangedReply:
        """Continue a run from its newest intact checkpoint."""
        run = find_run(workspace, name)
        allow = body is not None and body.allow_changed_base
        resume_training(workspace, run, allow_changed_base=allow)
        return run_changed(run, "Training resumed successfully")

    @router.post("/{name}/clone")
    def clone(name: RunName, body: CloneRequest | None = None) -> CloneReply:
        """The run's recipe with other values in it, ready to be started; nothing is started."""
        run = find_run(workspace, name)
        recipe = clone_recipe(run, body.overrides if body else {})
        return CloneReply(recipe=recipe, cloned_from=run.name)

    @router.post("/{name}/rename")
    def rename(name: RunName, body: RenameRequest) -> RunChangedReply:
        """Give a run's folder another name. Its training_id stays."""
        return run_changed(rename_run(find_run(workspace, name), body.name), "Run renamed")

    @router.delete("/{name}/checkpoints/{iteration}")
    def checkpoint_for_good(
        name: RunName, iteration: Annotated[int, Path(ge=0, le=_MAX_NUMBER)]
    ) -> RunChangedReply:
        """Delete one checkpoint for good. The run must not be training."""
        run = find_run(workspace, name)
        remove_checkpoint(run, iteration)
        return run_changed(run, f"Checkpoint {iteration} deleted")

    @router.delete("/{name}")
    def delete(name: RunName) -> TrashedReply:
        """Move a run to the trash."""
        name_in_trash = trash_run(find_run(workspace, name))
        return TrashedReply(message="Run moved to the trash", name=name_in_trash)


def _read_metrics(run: Run, offset: int, since_seq: int) -> MetricsReply:
    lines: list[MetricsLine] = []
    offset = max(offset, offset_before(run.folder, since_seq))
    while not lines:  # what was seen before is passed over, a piece at a time
        read, next_offset = read_lines(run.folder, offset, _READ_BYTES)
        lines = [line for line in read if line.seq > since_seq]
        if next_offset == offset:
            break
        offset = next_offset
    has_more = bool(read_lines(run.folder, offset, _READ_BYTES)[0])
    return MetricsReply(metrics=lines, next_offset=offset, has_more=has_more)
