"""Requests and replies of the management of runs."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from forgellm.schema.figures import CheckpointItem, Performance
from forgellm.schema.recipe import Recipe, TrainingType, recipe_schema
from forgellm.schema.reply import Item, Reply
from forgellm.schema.request import Request
from forgellm.schema.run import Ancestor, Phase, RunRecord, RunState


class CloneRequest(Request):
    """Fields of a recipe that the copy shall have instead."""

    overrides: dict[str, Any] = Field(
        default_factory=dict,
        examples=[{"max_iterations": 800}],
        json_schema_extra={
            "properties": recipe_schema()["properties"],
            "additionalProperties": False,
        },
    )


class RecipeText(Request):
    text: str = Field(
        max_length=200_000,
        description="A run.yaml, or the same as JSON.",
        examples=["model_name: SmolLM2-135M-Instruct\ndataset: handbook\n"],
    )


class ParsedRecipeReply(Reply):
    recipe: dict[str, Any] = Field(description="The fields that the text names, checked.")


class RenameRequest(Request):
    name: str = Field(
        max_length=200,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._+-]*[A-Za-z0-9_+-])?$",
        examples=["handbook-first-try"],
    )


class RestoreRequest(Request, json_schema_extra={"examples": [{"name": "handbook-first-try"}]}):
    name: str = Field(min_length=1, max_length=300, description="As GET /api/trash names it.")


class RunItem(Item):
    name: str
    training_id: str
    training_type: TrainingType
    output_dir: str
    model_name: str
    dataset: str
    base_run: str | None = Field(description="ID@iteration of the run's checkpoint it starts from.")
    lineage: list[Ancestor] = Field(description="All it descends from, the oldest first.")
    created_at: str
    phase: Phase
    is_training: bool
    current_iteration: int
    max_iterations: int
    progress_percentage: float
    eta_minutes: float | None
    best_validation_loss: float | None
    best_iteration: int | None
    num_checkpoints: int
    overfitting: bool


class RunsReply(Reply):
    runs: list[RunItem] = Field(description="Newest first.")
    total: int = Field(description="Runs that match the filters.")


class RunReply(Reply):
    run: RunItem
    record: RunRecord
    state: RunState
    checkpoints: list[CheckpointItem]
    best_checkpoints: list[int]
    performance: Performance


class RunChangedReply(Reply):
    message: str
    name: str
    training_id: str
    output_dir: str


class CloneReply(Reply):
    recipe: Recipe = Field(description="Ready for POST /api/training/start.")
    cloned_from: str


class TrashItem(Item):
    name: str = Field(description="Its name in the trash.")
    original_name: str
    training_id: str
    training_type: TrainingType
    model_name: str
    deleted_at: str
    size_mb: float


class TrashedReply(Reply):
    message: str
    name: str = Field(description="Its name in the trash.")


class TrashReply(Reply):
    trash: list[TrashItem]
    total_size_mb: float


class EmptiedReply(Reply):
    message: str
    deleted: int
    freed_mb: float


class QueueItem(Item):
    position: int = Field(description="1 is next.")
    name: str
    training_id: str
    output_dir: str
    model_name: str
    dataset: str
    max_iterations: int
    waits_for: str | None = Field(
        description="training_id of the base run, which is not complete; null where its turn decides."
    )
    created_at: str


class QueueReply(Reply):
    queue: list[QueueItem]
    running: str | None = Field(description="training_id of the run that trains now.")
