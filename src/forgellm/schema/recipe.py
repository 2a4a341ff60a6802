"""The recipe of a training run: what a user may ask for, with defaults, ranges and meanings.

The same fields are the JSON of `POST /api/training/start`, the flags of `forgellm train` and the
keys of a `run.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from functools import cache
from itertools import islice
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from forgellm.errors import ConfigError
from forgellm.schema.hosts import HOST_NAME
from forgellm.schema.request import Request

TrainingType = Literal["cpt", "ift", "dpo", "orpo"]
TRAINING_TYPES: tuple[TrainingType, ...] = get_args(TrainingType)
# Who shares the work: the figures do not depend on it, and a resumed run may have others.
MACHINE_FIELDS = frozenset(
    {"nproc_per_node", "nnodes", "rdzv_endpoint", "hosts", "max_restarts", "parallelism", "cpu_offload"}
)  # fmt: skip
# What the address of a webhook holds may be secret; a queue and one's machines are of no use to others.
PRIVATE_FIELDS = MACHINE_FIELDS | {"webhook_url", "queue"}
LrSchedule = Literal["cosine", "linear", "constant", "wsd"]
ColumnRole = Literal["messages", "user", "assistant", "system", "prompt", "chosen", "rejected"]
LoraTarget = Literal["all", "attention"] | list[str]
TrackerName = Literal["trackio", "wandb", "tensorboard", "mlflow"]

Parallelism = Literal["auto", "ddp", "fsdp"]

PathName = Annotated[str, Field(min_length=1, max_length=1000)]
HostName = Annotated[str, Field(pattern=f"^{HOST_NAME}$")]
_MAX_PROBLEMS = 20
_HOST = r"(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:]+\])"
_SCHEME_AND_HOST = r"https?://[^\s/?#@\\]+"
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SCHEDULE_ALIASES = {
    "cosine_decay": "cosine",
    "linear_decay": "linear",
    "linear_schedule": "linear",
}


_RECIPE = {
    "model_name": "mlx-community/Qwen3-4B-bf16",
    "training_type": "cpt",
    "dataset": "my_domain",
    "max_iterations": 500,
    "batch_size": 2,
    "learning_rate": 5e-5,
    "data_mixture_ratio": 0.8,
}


class Recipe(Request, json_schema_extra={"examples": [_RECIPE]}):
    """A training request. Fields left out get defaults; `None` means "decided at the start"."""

    model_name: str = Field(
        "",
        max_length=400,
        description="Base model: a hub id, or a path in the workspace; with base_run, that run's.",
    )
    training_type: TrainingType = Field(
        "cpt",
        description="cpt: continued pre-training on documents. ift: instruction fine-tuning. "
        "dpo, orpo: preferences, on pairs of a chosen and a rejected answer.",
    )
    base_run: str | None = Field(
        None,
        min_length=1,
        max_length=400,
        description="Start from this run's checkpoint: its name, id or folder; its best, or @iteration.",
    )
    base_run_mode: Literal["merged", "stacked"] = Field(
        "merged",
        description="merged: base_run's checkpoint becomes part of the model. stacked: its weights are trained on.",
    )
    dataset: str = Field(min_length=1, max_length=400, description="Name of a folder in dataset/.")
    engine: Literal["auto", "torch", "mlx"] = Field("auto", description="Which library computes.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Compute type; auto takes bfloat16 where the hardware is fast at it."
    )

    max_iterations: int = Field(500, ge=1, le=10_000_000, description="Optimiser updates.")
    batch_size: int = Field(2, ge=1, le=4096, description="Sequences per forward pass.")
    grad_accum_steps: int = Field(
        1, ge=1, le=4096, description="Forward passes per update; weighted by their tokens."
    )
    max_seq_length: int | None = Field(
        None,
        ge=8,
        le=1_048_576,
        description="Tokens per sequence; default 3072 or the model's limit.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=10,
        description="Peak learning rate; default 1e-4 for adapters, 1e-5 for full, a tenth of that for dpo and orpo.",
    )
    lr_schedule: LrSchedule = Field(
        "cosine", description="Shape of the learning rate after warm-up."
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        le=10_000_000,
        description="Updates of linear warm-up; default 3 % of max_iterations.",
    )
    min_lr: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Learning rate at the last update; default a tenth of the peak.",
    )
    weight_decay: float = Field(0.01, ge=0, le=10, description="AdamW decay, on matrices only.")
    max_grad_norm: float = Field(
        1.0, ge=0, le=1e6, description="Gradient clipping norm; 0 switches it off."
    )
    grad_checkpoint: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )

    fine_tune_type: Literal["lora", "dora", "full"] = Field("lora", description="What is trained.")
    lora_rank: int = Field(16, ge=1, le=1024, description="Rank of the adapter matrices.")
    lora_alpha: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Adapter scale is lora_alpha / lora_rank; default twice the rank.",
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    lora_target: LoraTarget = Field(
        "all", description="Which linear layers: all, attention, or a list of names."
    )
    num_layers: int | None = Field(
        None, ge=1, le=10_000, description="Train only the last so many layers; default all."
    )

    loss_on: Literal["assistant", "last", "all"] = Field(
        "assistant",
        description="ift: which tokens are learned: all answers, the last one, or every token.",
    )
    chat_template: Literal["auto", "chatml", "turns"] = Field(
        "auto",
        description="All but cpt: auto is the model's own, or a named one for a model without; kept with the run.",
    )
    columns: dict[ColumnRole, str] | None = Field(
        None,
        description="All but cpt: which column holds what, where names are unusual; found by itself otherwise.",
    )
    preference_beta: float = Field(
        0.1,
        gt=0,
        le=100,
        description="dpo: how strongly the start model holds back. orpo: weight of the odds ratio.",
    )

    data_mixture_ratio: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Share of training tokens from the dataset; the rest is replay. dpo and orpo have none.",
    )
    replay: Literal["fixed", "auto"] = Field(
        "fixed",
        description="auto: the share of replay is raised at a checkpoint where general loss has passed replay_bound.",
    )
    replay_bound: float = Field(
        0.05,
        gt=0,
        le=10,
        description="replay auto: nats per token by which general loss may exceed that at the start.",
    )
    replay_dataset: str | None = Field(
        None,
        min_length=1,
        max_length=400,
        description="Folder in dataset/ for replay; default: the shipped general text.",
    )
    validation_split: float = Field(
        0.1, ge=0, le=0.5, description="Share of the documents held out for validation."
    )
    val_batches: int = Field(
        25, ge=1, le=100_000, description="At most so many batches per validation, always the same."
    )
    eval_every: int | None = Field(
        None, ge=1, le=10_000_000, description="Updates between validations; default save_every."
    )
    save_every: int = Field(50, ge=1, le=10_000_000, description="Updates between checkpoints.")
    report_every: int = Field(1, ge=1, le=10_000_000, description="Updates between metric reports.")
    max_checkpoints: int = Field(
        5, ge=4, le=1000, description="Checkpoints kept; the best three and the last always stay."
    )
    overfitting_threshold: float = Field(
        0.1,
        gt=0,
        le=1000,
        description="Flag when validation loss exceeds its best by this fraction.",
    )
    early_stopping_patience: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Stop after so many flagged validations in a row; 0 never stops.",
    )
    seed: int = Field(
        42, ge=0, lt=2**31, description="Seed of data order, split and initialisation."
    )
    probe_files: list[PathName] = Field(
        default_factory=list,
        max_length=16,
        description="Files of probe questions, scored before training and at each checkpoint.",
    )
    general_files: list[PathName] | None = Field(
        None,
        max_length=16,
        description="Files or folders of general text whose loss shows forgetting; `shipped` is the text that comes along, the default wherever probe_files are given.",
    )
    sample_prompts: list[Annotated[str, Field(min_length=1, max_length=10_000)]] = Field(
        default_factory=list,
        max_length=32,
        description="Prompts whose likeliest answers are kept at each checkpoint.",
    )
    allow_overlap: bool = Field(
        False, description="Train although probes or held-out documents stand in the training text."
    )
    allow_changed_base: bool = Field(
        False,
        description="Start from base_run although its model is not, to the bit, the one that it was trained on.",
    )
    skip_unreadable: bool = Field(
        False,
        description="Go on without files that cannot be read just now, as when a disk fails. What was read without them is for this run alone.",
    )
    report_to: list[TrackerName] = Field(
        default_factory=list,
        max_length=4,
        description="Experiment trackers that get the figures too; each is an extra to install.",
    )
    webhook_url: str | None = Field(
        None,
        max_length=2000,
        pattern=rf"^{_SCHEME_AND_HOST}([/?#]\S*)?$",
        description="Address that gets a POST when the run completes, fails, stops or overfits.",
    )
    queue: bool = Field(False, description="If a run is active, wait for it instead of failing.")

    nproc_per_node: int = Field(
        1, ge=1, le=64, description="Processes on each machine that share every batch; one per GPU."
    )
    nnodes: int = Field(1, ge=1, le=1024, description="Machines that train together.")
    rdzv_endpoint: str | None = Field(
        None,
        max_length=300,
        pattern=rf"^{_HOST}:\d{{1,5}}$",
        description="HOST:PORT where several machines meet; the machine with that name writes the run.",
    )
    hosts: list[HostName] = Field(
        default_factory=list,
        max_length=256,
        description="Names in hosts.toml of the machines that are to train along, started over ssh.",
    )
    max_restarts: int = Field(
        0,
        ge=0,
        le=1000,
        description="How often a run of several processes goes on from its last checkpoint after one is lost.",
    )
    parallelism: Parallelism = Field(
        "auto",
        description="ddp: each process holds the whole model. fsdp: each holds a share of it. auto: ddp where it fits.",
    )
    cpu_offload: bool = Field(
        False,
        description="fsdp on GPUs: shares wait in the machine's memory; less GPU memory, slower.",
    )

    @field_validator("lr_schedule", mode="before")
    @classmethod
    def _known_schedule_name(cls, value: Any) -> Any:
        return _SCHEDULE_ALIASES.get(value, value) if isinstance(value, str) else value

    @field_validator("webhook_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        try:
            urlsplit(value or "")
        except ValueError:
            raise ValueError("webhook_url: is no address") from None
        return value

    @model_validator(mode="after")
    def _fields_agree(self) -> Recipe:
        if not self.model_name and self.base_run is None:
            raise ValueError("model_name: required")
        if self.warmup_steps is not None and self.warmup_steps > self.max_iterations:
            raise ValueError("warmup_steps: must not exceed max_iterations")
        if self.columns:
            _require_columns(self.columns.keys(), self.learns_preferences)
        if self.replay == "auto" and self.general_files == []:
            raise ValueError("general_files: replay auto needs general text to measure")
        if self.replay == "auto" and self.learns_preferences:
            raise ValueError("replay: dpo and orpo have none")
        if self.hosts and self.nnodes not in (1, len(self.hosts) + 1):
            raise ValueError("nnodes: is one more than hosts, this machine")
        if self.nnodes > 1 and not self.hosts and self.rdzv_endpoint is None:
            raise ValueError("rdzv_endpoint: needed with nnodes, for the machines to meet at")
        if self.skip_unreadable and self.num_processes > 1:
            raise ValueError("skip_unreadable: several processes might each lack another file")
        if self.batch_size % self.num_processes:
            raise ValueError(
                f"batch_size: must be a multiple of the {self.num_processes} processes"
            )
        if self.min_lr is not None and self.learning_rate is not None:
            if self.min_lr > self.learning_rate:
                raise ValueError("min_lr: must not exceed learning_rate")
        return self

    @property
    def learns_preferences(self) -> bool:
        """Whether it trains on pairs of answers."""
        return self.training_type in ("dpo", "orpo")

    @property
    def num_machines(self) -> int:
        return max(self.nnodes, len(self.hosts) + 1)

    @property
    def num_processes(self) -> int:
        """How many train together, on all machines."""
        return self.nproc_per_node * self.num_machines

    def resolved(self) -> Recipe:
        """This recipe with every default that needs no model filled in."""
        lr = self.learning_rate or self._default_learning_rate()
        warmup = (
            round(0.03 * self.max_iterations) if self.warmup_steps is None else self.warmup_steps
        )
        return self.model_copy(
            update={
                "learning_rate": lr,
                "warmup_steps": warmup,
                "min_lr": lr * 0.1 if self.min_lr is None else self.min_lr,
                "lora_alpha": self.lora_alpha or 2.0 * self.lora_rank,
                "eval_every": self.eval_every or self.save_every,
                "data_mixture_ratio": 1.0 if self.learns_preferences else self.data_mixture_ratio,
            }
        )

    def _default_learning_rate(self) -> float:
        rate = 1e-5 if self.fine_tune_type == "full" else 1e-4
        return rate / 10 if self.learns_preferences else rate

    def without_secrets(self) -> Recipe:
        """As replies show it: of a webhook's address only the scheme and the host."""
        host = re.match(_SCHEME_AND_HOST, self.webhook_url or "")
        return self.model_copy(update={"webhook_url": host[0] if host else None})


@cache
def recipe_schema() -> dict[str, Any]:
    """Of a recipe, in JSON Schema. One object for all who ask: not to be changed."""
    return Recipe.model_json_schema()


def _require_columns(named: Set[str], learns_preferences: bool) -> None:
    """Raises ValueError unless the columns named are enough to read a row."""
    if learns_preferences:
        if not {"chosen", "rejected"} <= named:
            raise ValueError("columns: name both chosen and rejected")
    elif "messages" not in named and not {"user", "assistant"} <= named:
        raise ValueError("columns: name messages, or both user and assistant")


def parse_recipe(values: dict[str, Any], *, from_text: bool = False) -> Recipe:
    """Validate a request. Raises ConfigError naming every bad field.

    `from_text`: numbers may be text, as flags are, and as YAML has `5e-5`.
    """
    try:
        return Recipe.model_validate(values, strict=False if from_text else None)
    except ValidationError as error:
        raise ConfigError(problems_of(error)) from None


def problems_of(error: ValidationError) -> list[dict[str, str]]:
    """Pydantic's findings as `{"field", "message"}`, without echoing what was sent."""
    return name_problems(
        error.errors(include_url=False, include_input=False, include_context=False)
    )


def name_problems(findings: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The first of pydantic's findings, without repeating a sent name that no field would have."""
    problems: list[dict[str, str]] = []
    for item in islice(findings, _MAX_PROBLEMS):
        field = ".".join(part for part in item["loc"] if _is_field_name(part))
        message = item["msg"].removeprefix("Value error, ")
        if not field and ": " in message:
            field, message = message.split(": ", 1)
        if item["type"] == "extra_forbidden":
            message = "unknown field"
        if item["type"] == "missing":
            message = "required"
        problem = {"field": field or "body", "message": message}
        if problem not in problems:
            problems.append(problem)
    return problems


def _is_field_name(part: Any) -> bool:
    return isinstance(part, str) and bool(_FIELD_NAME.fullmatch(part))
