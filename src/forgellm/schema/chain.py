"""Runs that follow one another: how they are asked for, and how they are shown."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from forgellm.errors import ConfigError
from forgellm.schema.recipe import Recipe, name_problems, parse_recipe
from forgellm.schema.reply import Item, Reply
from forgellm.schema.request import Request
from forgellm.schema.run import Phase

PREVIOUS = "previous"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$"
MAX_STAGES = 20


class ChainStage(BaseModel):
    """A recipe, and the run that was made of it, once there is one."""

    recipe: Recipe
    training_id: str | None = None


class ChainRecord(BaseModel):
    """`models/chains/<name>.json`. The stages' states are those of their runs."""

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
) -> list[Recipe]:
    """The recipes of `stages`, with the other values as their defaults, and `flags` before both.

    Each after the first starts from the run before it, unless it names a `base_run` of its own.
    Raises ConfigError naming every bad field with its stage, from 1: `stages.2.dataset`.
    """
    shared = {name: value for name, value in values.items() if name not in ("stages", "chain")}
    _require_sound(shared, from_text)
    stages = values.get("stages")
    if not isinstance(stages, list) or not 0 < len(stages) <= MAX_STAGES:
        raise ConfigError.one("stages", f"must be a list of 1 to {MAX_STAGES} recipes")
    recipes, problems = [], []
    for number, stage in enumerate(stages, 1):
        try:
            recipes.append(_parse_stage(number, shared, stage, flags or {}, from_text))
        except ConfigError as error:
            for problem in error.details["problems"]:
                problems.append({**problem, "field": f"stages.{number}.{problem['field']}"})
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
    number: int, shared: dict[str, Any], stage: Any, flags: dict[str, Any], from_text: bool
) -> Recipe:
    if not isinstance(stage, dict) or not all(isinstance(key, str) for key in stage):
        raise ConfigError.one("body", "must be the fields of a recipe")
    if number > 1:  # what all others start from is meant for the first
        shared = {**shared, "base_run": PREVIOUS}
        flags = {name: value for name, value in flags.items() if name != "base_run"}
    recipe = parse_recipe({**shared, **stage, **flags}, from_text=from_text)
    if number == 1 and recipe.base_run == PREVIOUS:
        raise ConfigError.one("base_run", "there is no run before the first stage")
    return recipe


_Status = Literal["running", "waiting", "stalled", "completed"]


class StageItem(Item):
    number: int = Field(description="From 1.")
    training_type: str
    dataset: str
    name: str | None = Field(description="Its run; null before that is made.")
    training_id: str | None
    phase: Phase | None
    current_iteration: int
    max_iterations: int
    error: dict[str, Any] | None = Field(description="Of a run that failed.")


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
