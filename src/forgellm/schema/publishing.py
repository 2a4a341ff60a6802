"""Publishing, downloads, and the jobs that do them: requests and replies."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from forgellm.schema.recipe import TrainingType
from forgellm.schema.reply import Item, Reply
from forgellm.schema.request import AllowChangedBase, Request

HUB_ID_PART = "[A-Za-z0-9][A-Za-z0-9._-]{0,95}"

JobKind = Literal[
    "publish_checkpoint",
    "push",
    "export_model",
    "combine",
    "quantise",
    "download",
    "demo",
    "questions",
    "evaluate",
    "inspect_dataset",
    "stats_dataset",
    "dedup_dataset",
    "split_dataset",
    "prepare_dataset",
    "restore_dataset",
]
JobStatus = Literal["queued", "running", "completed", "failed", "cancelled"]


PublishedDtype = Literal["stored", "float32"]

_PUBLISH = {
    "checkpoint_path": "models/cpt/my_model/0000300_adapters.safetensors",
    "training_dir": "models/cpt/my_model",
}


class PublishRequest(Request, json_schema_extra={"examples": [_PUBLISH]}):
    checkpoint_path: str = Field(
        min_length=1, max_length=1000, description="The checkpoint's weights in its run's folder."
    )
    training_dir: str | None = Field(
        None, min_length=1, max_length=1000, description="The run's folder; default: around it."
    )
    dtype: PublishedDtype = Field(
        "stored",
        description="What weights are stored in: stored, as the base stores its own (rounded to it), "
        "or float32, which keeps them exactly and takes twice the space of 16 bits.",
    )
    allow_changed_base: AllowChangedBase = False
    run_async: bool = Field(
        False, alias="async", description="true: answer at once with a job instead of waiting."
    )


_DOWNLOAD = {"model_name": "HuggingFaceTB/SmolLM2-135M-Instruct"}


class DownloadRequest(Request, json_schema_extra={"examples": [_DOWNLOAD]}):
    model_name: str = Field(
        min_length=1,
        max_length=200,
        description="A model's id on the hub.",
        # Told, not checked here: `is_hub_id` does that, and says more.
        json_schema_extra={"pattern": rf"^(?!.*(--|\.\.)){HUB_ID_PART}(/{HUB_ID_PART})?$"},
    )
    revision: str = Field(
        "main", min_length=1, max_length=200, description="Branch, tag or commit."
    )


class Verification(Item):
    """How the published model compared with its base and checkpoint, read back from the disk."""

    top1_agreement: float = Field(description="Share of positions with the same likeliest token.")
    mean_kl: float = Field(description="Mean divergence of the predictions, in nats.")
    positions: int = Field(description="Positions of general text that were compared.")
    dtype: str = Field(description="The type both computed in.")


class PublishedReply(Reply):
    message: str
    published_model_path: str
    model_name: str = Field(description="What to load it by.")
    dashboard_path: str
    readme_path: str
    verification: Verification


class JobStarted(Reply):
    message: str
    job_id: str


class JobItem(Item):
    job_id: str
    kind: JobKind
    status: JobStatus
    progress: float = Field(ge=0, le=1)
    message: str
    result: dict[str, Any] | None = Field(description="What a completed job has made.")
    error: dict[str, Any] | None = Field(description="The error envelope of a failed job.")
    created_at: str


class JobReply(Reply):
    job: JobItem


class JobsReply(Reply):
    jobs: list[JobItem]


class FoundModel(Item):
    kind: Literal["cached", "base", "published"] | TrainingType
    name: str
    path: str | None = Field(description="Relative to models/; null in the hub's cache.")
    type: Literal["base", "instruct"] | None = Field(description="null for runs.")
    size_gb: float
    created_at: str


class SearchReply(Reply):
    query: str
    models: list[FoundModel]
