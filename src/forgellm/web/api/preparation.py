"""Measure, clean and divide datasets: jobs in a process of their own, and what they left out."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query

from forgellm.catalog import find_model
from forgellm.child import run_child
from forgellm.data.cleaning.manifest import read_manifest
from forgellm.data.cleaning.orders import Order, Task, against_files
from forgellm.data.datasets import find_dataset
from forgellm.envelope import JsonRoute
from forgellm.paths import Workspace
from forgellm.schema.preparation import (
    DatasetRequest,
    DedupRequest,
    InspectRequest,
    PreparationReply,
    PrepareRequest,
    RemovalItem,
    RestoreRequest,
    SplitRequest,
)
from forgellm.schema.publishing import JobKind, JobStarted
from forgellm.web.jobs import Job, JobRunner
from forgellm.web.measuring import usual_model

# -P: a file in the workspace must not pass for a module. The order is appended.
WORKER = (sys.executable, "-P", "-m", "forgellm.data.cleaning")

_KINDS: dict[Task, JobKind] = {
    "inspect": "inspect_dataset",
    "stats": "stats_dataset",
    "dedup": "dedup_dataset",
    "split": "split_dataset",
    "prepare": "prepare_dataset",
    "restore": "restore_dataset",
}

DatasetName = Annotated[str, Path(min_length=1, max_length=400)]


def make_router(workspace: Workspace, jobs: JobRunner) -> APIRouter:
    router = APIRouter(prefix="/api/datasets/{name}", route_class=JsonRoute)

    def start(task: Task, name: str, body: DatasetRequest | RestoreRequest) -> JobStarted:
        find_dataset(workspace, name)
        tokenizer = _tokenizer(body, workspace) if isinstance(body, InspectRequest) else None
        order = Order(task, str(workspace.root), name, body.model_dump(), tokenizer)
        if isinstance(body, SplitRequest):
            against_files(order, body.against)
        told = orjson.dumps(asdict(order)).decode()
        job = jobs.submit(_KINDS[task], told, lambda job: _work(job, told), "heavy")
        return JobStarted(message="Started", job_id=job.job_id)

    @router.post("/inspect")
    def inspect(name: DatasetName, body: InspectRequest) -> JobStarted:
        """Every file with its tokens and language, what is skipped, and all that `stats` tells."""
        return start("inspect", name, body)

    @router.post("/stats")
    def stats(name: DatasetName, body: InspectRequest) -> JobStarted:
        """Totals, lengths in tokens, languages, duplicates, likely secrets."""
        return start("stats", name, body)

    @router.post("/dedup")
    def dedup(name: DatasetName, body: DedupRequest) -> JobStarted:
        """List duplicates and near duplicates; nothing is removed."""
        return start("dedup", name, body)

    @router.post("/split")
    def split(name: DatasetName, body: SplitRequest) -> JobStarted:
        """How a run would split it, and what of the held-out text is in the training text."""
        return start("split", name, body)

    @router.post("/prepare")
    def prepare(name: DatasetName, body: PrepareRequest) -> JobStarted:
        """Make a cleaned copy, `<name>-prepared`; the dataset itself is not touched."""
        return start("prepare", name, body)

    @router.post("/restore")
    def restore(name: DatasetName, body: RestoreRequest) -> JobStarted:
        """Undo removals in a prepared dataset."""
        return start("restore", name, body)

    @router.get("/preparation")
    def preparation(
        name: DatasetName,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
        limit: Annotated[int, Query(ge=0, le=1000)] = 100,
    ) -> PreparationReply:
        """What a prepared dataset was made of, and what was left out."""
        return _reply(name, offset, limit, workspace)

    return router


def _tokenizer(body: InspectRequest, workspace: Workspace) -> str | None:
    found = find_model(body.model, workspace) if body.model else usual_model(workspace)
    return str(found.path) if found else None


def _work(job: Job, order: str) -> dict[str, Any]:
    return run_child([*WORKER, order], {}, "The task", job.report, job.stop_with)


def _reply(name: str, offset: int, limit: int, workspace: Workspace) -> PreparationReply:
    folder = find_dataset(workspace, name)
    manifest = read_manifest(folder)
    removals = manifest.removals[offset : offset + limit]
    return PreparationReply(
        name=folder.name,
        dataset=manifest.dataset,
        kind=manifest.kind,
        settings=manifest.settings,
        fingerprint=manifest.fingerprint,
        original_fingerprint=manifest.original_fingerprint,
        num_read=manifest.num_read,
        num_written=manifest.num_written,
        num_skipped=len(manifest.skipped),
        num_flags=manifest.num_flags,
        num_removals=len(manifest.removals),
        removals=[RemovalItem(**asdict(item)) for item in removals],
        restored=manifest.restored,
    )
