"""What a model knows and how well it predicts, as it is kept in a run's folder and served."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from forgellm.schema.recipe import PathName
from forgellm.schema.request import AllowChangedBase, Request


class ProbeFigures(BaseModel):
    """One probe file, measured once."""

    file: str = Field(examples=["dataset/questions.json"])
    fingerprint: str = Field(description="Of the file's contents; other probes have another.")
    num_probes: int
    accuracy: float = Field(description="Share answered right, 0 to 1.")
    standard_error: float
    accuracy_low: float = Field(description="Lower end of the 95 % interval (Wilson).")
    accuracy_high: float
    confidence: float | None = Field(
        description="Mean probability of the right ending among the given ones; null without any."
    )
    right: str = Field(description="A character a probe, in the file's order: 1 right, 0 wrong.")
    noise_floor: float | None = Field(
        default=None, description="How far two measurements of the untouched model differed."
    )
    change: float | None = Field(default=None, description="Of the accuracy since the start.")
    change_standard_error: float | None = Field(
        default=None, description="Of the change, probe by probe."
    )


class GeneralFigures(BaseModel):
    """One file or folder of general text, measured once. Losses in nats per token."""

    file: str = Field(examples=["shipped"])
    fingerprint: str
    num_documents: int
    num_tokens: int
    loss: float | None = Field(description="Mean over all tokens; null where it is not finite.")
    standard_error: float | None = Field(description="Over documents; null for fewer than two.")
    losses: list[float | None] = Field(description="Of each document.")
    noise_floor: float | None = Field(
        default=None, description="How far two measurements of the untouched model differed."
    )
    change: float | None = Field(default=None, description="Of the loss since the start.")
    change_standard_error: float | None = Field(
        default=None, description="Of the change, document by document."
    )


class EvaluationLine(BaseModel):
    """A line of `evaluations.jsonl`: the model as it was at an iteration."""

    iteration: int
    probes: list[ProbeFigures]
    general: list[GeneralFigures]
    seconds: float
    timestamp: str
    replay_share: float | None = Field(
        default=None, description="replay auto: the share of replay from here on, where it changed."
    )


class SampleLine(BaseModel):
    """A line of `samples.jsonl`: a prompt's likeliest answer at an iteration."""

    iteration: int
    prompt: str
    answer: str
    finish_reason: str
    timestamp: str


_EVALUATE = {"model": "models/cpt/my_model", "probe_files": ["dataset/questions.json"]}


class Measurement(Request):
    """What to measure, and how the model computes meanwhile."""

    probe_files: list[PathName] = Field(default_factory=list, max_length=16)
    general_files: list[PathName] = Field(
        default_factory=lambda: ["shipped"],
        max_length=16,
        description="Files or folders of general text; `shipped` is the text that comes along.",
    )
    engine: Literal["auto", "torch", "mlx"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class EvaluateRequest(Measurement, json_schema_extra={"examples": [_EVALUATE]}):
    model: str = Field(
        min_length=1,
        max_length=1000,
        description="A model, a run (its best checkpoint) or a checkpoint.",
    )
    allow_changed_base: AllowChangedBase = False


class ModelEvaluation(BaseModel):
    """One model, measured twice for the noise floor. `checkpoint` is its file in the run."""

    model: str
    checkpoint: str | None
    engine: str
    device: str
    dtype: str
    probes: list[ProbeFigures]
    general: list[GeneralFigures]
    seconds: float
