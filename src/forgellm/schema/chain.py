"""Runs that follow one another: how they are asked for, and how they are shown."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from forgellm.errors import ConfigError
from forgellm.schema.evaluation import Measurement, ModelEvaluation
from forgellm.schema.recipe import Recipe, name_problems, parse_recipe, problems_of
from forgellm.schema.reply import Item, Reply
from forgellm.schema.request import Request
from forgellm.schema.run import Phase

PREVIOUS = "previous"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$"
MAX_STAGES = 20


class EvalRecipe(Measurement):
    """A stage that measures the run before it, and trains nothing.

    Without a `base_run` it measures `model_name` as that came.
    """

    training_type: Literal["eval"]
    model_name: str = Field("", max_length=400)
    base_run: str | None = Field(None, min_length=1, max_length=400)

    @model_validator(mode="after")
    def _can_be_measured(self) -> EvalRecipe:
        if self.base_run is None and not self.model_name:
            raise ValueError("model_name: required")
        if self.base_run is not None and self.model_name:
            raise ValueError("model_name: is that of the run that is measured; leave it out")
        if not self.probe_files and not self.general_files:
            raise ValueError("probe_files: without general_files too, there is nothing to measure")
        return self


StageRecipe = Recipe | EvalRecipe


class MeasuredWeights(BaseModel):
    """Of which checkpoint the figures are."""

    training_id: str
    iteration: int
    weights_sha256: str


class StageEvaluation(BaseModel):
    """What an eval stage has found, or why it failed. `weights`: None for a model as it came."""

    weights: MeasuredWeights | None
    result: ModelEvaluation | None
    error: dict[str, Any] | None


class ChainStage(BaseModel):
    """A recipe, and the run that was made of it, or what was measured, once there is that."""

    recipe: StageRecipe
    training_id: str | None = None
    evaluation: StageEvaluation | None = None


class ChainRecord(BaseModel):
    """`models/chains/<name>.json`. The states of stages that train are those of their runs."""

    name: str
    created_at: str
    stages: list[ChainStage]


_CHAIN = {
    "model_name": "mlx-community/Qwen3-4B-bf16",
    "stages": [
        {"training_type": "cpt", "dataset": "my_domain", "max_iterations": 300},
        {"training_type": "ift", "dataset": "my_chats", "max_iterations": 200},
    ],
}


class ChainRequest(Request, json_schema_extra={"examples": [_CHAIN]}):
    """Fields of a recipe beside `stages` are the defaults of each stage."""

    chain: str | None = Field(
        None, pattern=NAME_PATTERN, description="Its name; default: made of the time."
    )
    stages: list[dict[str, Any]] = Field(
        min_length=1,
        max_length=MAX_STAGES,
        description="Recipes. Each but the first starts from the run before it.",
    )


def parse_stages(
    values: dict[str, Any], flags: dict[str, Any] | None = None, *, from_text: bool = False
) -> list[StageRecipe]:
    """The recipes of `stages`, with the other values as their defaults, and `flags` before both.

    Each after the first that trains starts from the run before it, or measures that, unless it
    names a `base_run` of its own.
    Raises ConfigError naming every bad field with its stage, from 1: `stages.2.dataset`.
    """
    shared = {name: value for name, value in values.items() if name not in ("stages", "chain")}
    _require_sound(shared, from_text)
    stages = values.get("stages")
    if not isinstance(stages, list) or not 0 < len(stages) <= MAX_STAGES:
        raise ConfigError.one("stages", f"must be a list of 1 to {MAX_STAGES} recipes")
    recipes: list[StageRecipe] = []
    problems = []
    follows_run = False
    for number, stage in enumerate(stages, 1):
        try:
            recipes.append(_parse_stage(stage, shared, flags or {}, follows_run, from_text))
        except ConfigError as error:
            for problem in error.details["problems"]:
                problems.append({**problem, "field": f"stages.{number}.{problem['field']}"})
        follows_run = follows_run or not _is_eval(stage)
    if problems:
        raise ConfigError(problems)
    return recipes


def _require_sound(shared: dict[str, Any], from_text: bool) -> None:
    """Each field by itself, as a stage may have its own; whether they agree is a stage's matter."""
    try:
        Recipe.model_validate({"dataset": "any", **shared}, strict=False if from_text else None)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        if problems := name_problems(item for item in found if item["loc"]):
            raise ConfigError(problems) from None


def _parse_stage(
    stage: Any, shared: dict[str, Any], flags: dict[str, Any], follows_run: bool, from_text: bool
) -> StageRecipe:
    if not isinstance(stage, dict) or not all(isinstance(key, str) for key in stage):
        raise ConfigError.one("body", "must be the fields of a recipe")
    if follows_run:  # what all others start from is meant for the first
        shared = {**shared, "base_run": PREVIOUS}
        flags = {name: value for name, value in flags.items() if name != "base_run"}
    recipe: StageRecipe
    if _is_eval(stage):
        recipe = _parse_eval(stage, shared, flags, from_text)
    else:
        recipe = parse_recipe({**shared, **stage, **flags}, from_text=from_text)
    if not follows_run and recipe.base_run == PREVIOUS:
        raise ConfigError.one("base_run", "there is no run before this stage")
    return recipe


def _is_eval(stage: Any) -> bool:
    return isinstance(stage, dict) and stage.get("training_type") == "eval"


def _parse_eval(
    stage: dict[str, Any], shared: dict[str, Any], flags: dict[str, Any], from_text: bool
) -> EvalRecipe:
    """Of the shared values and flags it takes those that say something about measuring."""
    names = EvalRecipe.model_fields.keys() - {"training_type"}
    shared = {n: value for n, value in shared.items() if n in names and value is not None}
    flags = {n: value for n, value in flags.items() if n in names}
    values = {**shared, **stage, **flags}
    if values.get("base_run") is not None and "model_name" not in stage:
        values.pop("model_name", None)  # that of the training stages
    try:
        return EvalRecipe.model_validate(values, strict=False if from_text else None)
    except ValidationError as error:
        raise ConfigError(problems_of(error)) from None


_Status = Literal["running", "waiting", "stalled", "completed"]


class StageItem(Item):
    number: int = Field(description="From 1.")
    training_type: str
    dataset: str | None = Field(description="null for eval.")
    name: str | None = Field(description="Its run; null before that is made, and for eval.")
    training_id: str | None
    phase: Phase | None
    current_iteration: int
    max_iterations: int
    error: dict[str, Any] | None = Field(description="Of a run or a measurement that failed.")
    weights: MeasuredWeights | None = Field(
        description="eval: the checkpoint that was measured; null for a model as it came."
    )
    evaluation: ModelEvaluation | None = Field(description="eval: the figures.")


class ChainItem(Item):
    name: str
    created_at: str
    status: _Status = Field(
        description="stalled: a stage failed or was stopped, and the rest waits for it."
    )
    stage: int | None = Field(description="The first that is not complete; null at the end.")
    stages: list[StageItem]


class ChainReply(Reply):
    message: str
    chain: ChainItem


class ChainsReply(Reply):
    chains: list[ChainItem] = Field(description="Newest first.")
