"""Replies about how runs went: checkpoints, curves, comparisons, estimates."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from forgellm.schema.evaluation import EvaluationLine, SampleLine
from forgellm.schema.reply import Item, Reply
from forgellm.schema.run import MetricsLine


class CheckpointItem(Item):
    iteration: int
    path: str = Field(examples=["models/cpt/my_model/0000300_adapters.safetensors"])
    validation_loss: float | None
    probe_accuracy: float | None = Field(
        description="Share of all probes answered right; null where none were asked."
    )
    general_loss: float | None = Field(
        description="Over all tokens of the general text, in nats; null where it was not measured."
    )
    rank: int = Field(description="1 is the best, by what `rank_by` asks for.")
    is_best: bool
    size_mb: float
    created_at: str


class CheckpointsReply(Reply):
    checkpoints: list[CheckpointItem] = Field(description="Best first.")
    best_checkpoints: list[int] = Field(description="Iterations of the best three, best first.")
    training_dir: str | None = Field(description="The run they are of; null without runs.")


class Performance(Item):
    """What sums a run up. Null where nothing was measured."""

    avg_tokens_per_second: float | None = None
    peak_memory_gb: float | None = None
    training_stability: float | None = Field(
        default=None, description="1 without noise, towards 0."
    )
    final_loss: float | None = None
    best_validation_loss: float | None = None
    best_iteration: int | None = None
    generalisation_gap: float | None = Field(
        default=None, description="The mean of the last three gaps; see the points of the curve."
    )
    trained_tokens: int | None = None
    training_minutes: float | None = None


class CurvePoint(MetricsLine):
    """A line of metrics as the curve has it."""

    generalisation_gap: float | None = Field(
        default=None,
        description="Of a validation: its loss minus the mean training loss since the one before.",
    )


class DashboardReply(Reply):
    training_data: list[CurvePoint] = Field(description="At most 2,000 points.")
    evaluations: list[EvaluationLine] = Field(
        description="What was measured at the start and at checkpoints, by iteration."
    )
    samples: list[SampleLine] = Field(description="Answers to the recipe's sample prompts.")
    best_checkpoints: list[int]
    training_config: dict[str, Any] | None = Field(description="The recipe; null without runs.")
    performance_metrics: Performance
    training_dir: str | None
    training_id: str | None
    phase: str | None
    is_training: bool
    overfitting: bool
    overfitting_iteration: int | None


class CurrentMetrics(Item):
    iteration: int | None
    training_loss: float | None
    validation_loss: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    memory_usage_gb: float | None
    gpu_utilization: float | None = Field(description="0 to 1; null without an NVIDIA GPU.")
    timestamp: str | None


class RealtimeReply(Reply):
    current_metrics: CurrentMetrics
    is_training: bool
    training_id: str | None


class Curve(Item):
    """Values at the iterations of the comparison; null where the run has none."""

    training_loss: list[float | None]
    validation_loss: list[float | None]


class ComparedRun(Item):
    name: str
    training_id: str
    phase: str
    performance: Performance
    curve: Curve


class CompareReply(Reply):
    iterations: list[int]
    runs: list[ComparedRun] = Field(description="In the order asked for.")
    differences: dict[str, list[Any]] = Field(
        description="Recipe fields in which the runs differ, with the value of each run."
    )


class MemoryItem(Item):
    weights_gb: float
    optimizer_gb: float
    activations_gb: float
    process_gb: float
    total_gb: float
    available_gb: float


class DiskItem(Item):
    checkpoint_gb: float
    needed_gb: float = Field(description="All checkpoints kept, and one more being written.")
    free_gb: float


class TimeItem(Item):
    """From the speed of a former run of the same model here; nulls where there is none."""

    minutes: float | None
    tokens_per_second: float | None
    based_on: str | None = Field(description="Name of that run.")


class EstimateReply(Reply):
    fits: bool
    problem: dict[str, Any] | None = Field(description="Why not, as an error envelope.")
    memory: MemoryItem
    disk: DiskItem
    time: TimeItem
    max_seq_length: int
    total_tokens: int = Field(description="Tokens of all updates together.")
    learning_rates: list[tuple[int, float]] = Field(
        description="Iteration and learning rate, at up to 65 places of the schedule."
    )
    warnings: list[str]


class EvaluationsReply(Reply):
    evaluations: list[EvaluationLine] = Field(description="By iteration; 0 is before training.")
    samples: list[SampleLine] = Field(description="By iteration, in the order of the prompts.")


class LogLine(Item):
    timestamp: str | None
    level: str | None = Field(description="Null for output that is no log line.")
    message: str


class LogReply(Reply):
    lines: list[LogLine]


class MetricsReply(Reply):
    metrics: list[MetricsLine]
    next_offset: int = Field(description="Give it as offset to read on.")
    has_more: bool
