"""Replies about training as such, and about the server it is asked of."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from forgellm.schema.recipe import TrainingType
from forgellm.schema.reply import Item, Reply
from forgellm.schema.run import Phase, ProcessFigures, Tokenising


class TrainingReply(Reply):
    message: str = Field(examples=["Training stopped successfully"])
    training_id: str = Field(examples=["cpt_20260115_103045"])
    output_dir: str = Field(description="The run's folder in the workspace.")


class TrainingStartedReply(TrainingReply):
    warnings: list[str] = Field(description="What will not be quite as asked, and why.")


class StatusReply(Reply):
    """The run that trains now, else the last one; all null where there never was one."""

    is_training: bool
    training_type: TrainingType | None
    current_iteration: int | None
    max_iterations: int | None
    progress_percentage: float | None
    current_loss: float | None
    validation_loss: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    memory_usage_gb: float | None
    eta_minutes: float | None
    output_dir: str | None
    training_id: str | None
    phase: Phase | None
    tokenising: Tokenising | None = Field(
        description="While a run is preparing and its text is not in the cache."
    )
    processes: list[ProcessFigures] = Field(description="Where several train together, else empty.")
    overfitting: bool | None
    error: dict[str, Any] | None = Field(description="Of a run that failed.")
    warnings: list[str]


class Components(Item):
    web_server: Literal["running"]
    model_server: Literal["running", "stopped"]
    training_pipeline: Literal["training", "idle"]


class SystemInfo(Item):
    memory_total_gb: float
    memory_available_gb: float
    disk_free_gb: float
    python_version: str
    mlx_version: str | None = Field(description="null where MLX is not installed.")
    num_cores: int
    gpus: list[str] = Field(description="Names of the NVIDIA GPUs.")


class HealthReply(Reply):
    status: Literal["healthy", "degraded"] = Field(
        description="degraded: the model server does not answer."
    )
    version: str
    components: Components
    system_info: SystemInfo
