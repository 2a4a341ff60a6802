"""Publish checkpoints as models of their own."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from forgellm.envelope import JsonRoute
from forgellm.paths import Workspace
from forgellm.publishing.publish import find_publishable, publish_checkpoint
from forgellm.schema.publishing import JobStarted, PublishedReply, PublishRequest
from forgellm.web.jobs import Job, JobRunner


def make_router(workspace: Workspace, jobs: JobRunner) -> APIRouter:
    router = APIRouter(prefix="/api/training", route_class=JsonRoute)

    @router.post("/publish_checkpoint")
    async def publish(body: PublishRequest) -> PublishedReply | JobStarted:
        """Convert a checkpoint to a full model; answers when its files are there."""
        job = await asyncio.to_thread(_submit, workspace, jobs, body)
        if body.run_async:
            return JobStarted(message="Publishing started", job_id=job.job_id)
        # shield: others may wait for the same job, and a client that leaves does not undo it.
        result = await asyncio.shield(asyncio.wrap_future(job.finished))
        return PublishedReply(message="Checkpoint published successfully", **result)

    return router


def _submit(workspace: Workspace, jobs: JobRunner, body: PublishRequest) -> Job:
    run, checkpoint = find_publishable(workspace, body.checkpoint_path, body.training_dir)

    def work(job: Job) -> dict[str, Any]:
        published = publish_checkpoint(
            run,
            checkpoint,
            body.dtype,
            allow_changed_base=body.allow_changed_base,
            on_progress=job.report,
            on_start=job.stop_with,
        )
        return asdict(published)

    key = f"{run.output_dir}/{checkpoint.weights.name} {body.dtype} {body.allow_changed_base}"
    return jobs.submit("publish_checkpoint", key, work, "heavy")
