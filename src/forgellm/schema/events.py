"""What the web server says over Socket.IO, and what it can be asked there."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from forgellm.schema.answers import HeldModel
from forgellm.schema.evaluation import EvaluationLine
from forgellm.schema.request import Request
from forgellm.schema.run import Phase, ProcessFigures, Tokenising


class SubscribeRequest(Request):
    """`subscribe_training` and `unsubscribe_training`.

    Attributes:
        training_id: the run; without it, the one that trains, else the latest, and after it each
            that starts.
        since_seq: the last `seq` the client has seen; what came after it is sent first.
    """

    training_id: str | None = Field(None, min_length=1, max_length=400)
    since_seq: int | None = Field(None, ge=0)


class RunEvent(BaseModel):
    """What every event of a run says. `seq` is that of the newest line of the run's metrics."""

    name: ClassVar[str]

    training_id: str
    seq: int
    phase: Phase
    timestamp: str


class TrainingUpdate(RunEvent):
    """Where the run is. A figure that was not measured, or was not finite, is null."""

    name: ClassVar[str] = "training_update"

    iteration: int
    max_iterations: int
    progress_percentage: float
    training_loss: float | None
    validation_loss: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    memory_usage_gb: float | None
    eta_minutes: float | None
    overfitting: bool
    overfitting_iteration: int | None
    tokenising: Tokenising | None = Field(
        description="While a run is preparing and its text is not in the cache."
    )
    processes: list[ProcessFigures] = Field(description="Where several train together, else empty.")


class EvaluationUpdate(RunEvent):
    """The run has measured what it has learned and forgotten, at the iteration of `evaluation`."""

    name: ClassVar[str] = "evaluation_update"

    evaluation: EvaluationLine


class TrainingComplete(RunEvent):
    """The run came to its end, or was stopped."""

    name: ClassVar[str] = "training_complete"

    success: bool = True
    stopped: bool
    stopped_early: bool
    final_iteration: int
    final_loss: float | None
    training_time_minutes: float
    best_checkpoints: list[int]
    output_dir: str


class TrainingError(RunEvent):
    """The run failed, or its trainer vanished."""

    name: ClassVar[str] = "training_error"

    success: bool = False
    error: str
    error_code: str
    details: dict[str, Any]
    suggestion: str
    iteration: int
    output_dir: str


class ModelUpdate(BaseModel):
    """`model_update`: the model server's status; `running` is false while it does not answer."""

    model_config = ConfigDict(protected_namespaces=())

    name: ClassVar[str] = "model_update"

    running: bool
    loaded: bool = False
    is_loading: bool = False
    model_name: str | None = None
    adapter_path: str | None = None
    model_type: str | None = None
    memory_usage_gb: float | None = None
    error: dict[str, Any] | None = None
    models: list[HeldModel] = Field(default_factory=list)
    upstream_models: list[str] | None = None
