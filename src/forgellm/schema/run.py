"""What a run folder holds, as types."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from forgellm.schema.recipe import Recipe, TrainingType
from forgellm.schema.request import AllowChangedBase, Request

RUN_SCHEMA_VERSION = 1

Phase = Literal[
    "queued", "preparing", "training", "evaluating", "saving",
    "completed", "stopped", "failed", "interrupted",
]  # fmt: skip
ACTIVE_PHASES: frozenset[Phase] = frozenset({"preparing", "training", "evaluating", "saving"})


class Ancestor(BaseModel):
    """A checkpoint that a run started from.

    Attributes:
        name: the run's name at that time; `training_id` stays when a run is renamed.
        weights_sha256: of the adapters' file; of a full checkpoint's files, of their hashes.
        mode: how it was used, as in `base_run_mode`.
    """

    training_id: str
    name: str
    training_type: str
    dataset: str
    iteration: int
    weights_sha256: str
    mode: Literal["merged", "stacked"]


class BaseFile(BaseModel):
    """A file of the model that a run was trained on, as it was then."""

    size_bytes: int
    sha256: str


class RunRecord(BaseModel):
    """`run.json`: written when the run is created, completed once before its first update."""

    model_config = ConfigDict(protected_namespaces=())

    schema_version: int = RUN_SCHEMA_VERSION
    training_id: str
    name: str
    training_type: TrainingType
    created_at: str
    recipe: Recipe
    engine: str | None = None
    device: str | None = None
    dtype: str | None = None
    dtype_reason: str | None = None
    lineage: list[Ancestor] = Field(
        default_factory=list, description="The checkpoints it descends from, the oldest first."
    )
    model: dict[str, Any] = Field(default_factory=dict)
    base_files: dict[str, BaseFile] = Field(
        default_factory=dict,
        description="What the model's folder held when the run began: weights, configuration, "
        "tokenizer and chat template, by file name. Empty for runs of earlier versions.",
    )
    companions: dict[str, str] | None = Field(
        default=None,
        description="sha256 of what belongs to the run's weights: how the adapter is attached, the "
        "chat template, what pairs are compared with. null for runs of earlier versions.",
    )
    data: dict[str, Any] = Field(default_factory=dict)
    memory: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str | None] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)


class Tokenising(BaseModel):
    """How far a run's text is tokenised; all but `total_bytes` is 0 while files are compared with
    the cache."""

    done_bytes: int
    total_bytes: int = Field(description="Of the dataset's files.")
    num_tokens: int


class ProcessFigures(BaseModel):
    """One of several processes that train together, since the last report."""

    rank: int = Field(description="Its number, from 0; process 0 writes the run.")
    host: str
    memory_usage_gb: float = Field(description="Peak of the process, or of its GPU.")
    tokens_per_second: float = Field(description="Of its own share of the tokens.")


class RunState(BaseModel):
    """`state.json`: where the run is now. Replaced atomically by the trainer."""

    phase: Phase = "preparing"
    iteration: int = 0
    eta_minutes: float | None = None
    training_seconds: float = 0.0
    overfitting: bool = False
    overfitting_iteration: int | None = None
    stopped_early: bool = False
    error: dict[str, Any] | None = None
    heartbeat: str = ""
    tokenising: Tokenising | None = None
    processes: list[ProcessFigures] = Field(
        default_factory=list, description="Where several train together."
    )


class MetricsLine(BaseModel):
    """One line of `metrics.jsonl`. Non-finite numbers are `None` with `non_finite` true.

    Attributes:
        reward_accuracy, reward_margin, chosen_log_prob: of preference runs alone, on the training
            pairs since the last report; see `engines.base.PreferenceFigures`.
    """

    seq: int
    iteration: int
    training_loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    memory_usage_gb: float | None = None
    grad_norm: float | None = None
    trained_tokens: int = 0
    reward_accuracy: float | None = None
    reward_margin: float | None = None
    chosen_log_prob: float | None = None
    non_finite: bool = False
    timestamp: str


class ResumeRequest(Request):
    """Which run to continue: by its id, or by its folder."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"training_id": "cpt_20260115_103045"}],
            "anyOf": [
                {"required": [name], "properties": {name: {"type": "string"}}}
                for name in ("training_id", "output_dir")
            ],
        },
    )

    training_id: str | None = Field(None, min_length=1, max_length=400)
    output_dir: str | None = Field(None, min_length=1, max_length=1000)
    allow_changed_base: AllowChangedBase = False


class ResumeOptions(Request, json_schema_extra={"examples": [{"allow_changed_base": True}]}):
    """How a run is continued that is named by the address."""

    allow_changed_base: AllowChangedBase = False
