"""Recipes as files: what the page imports, checked as a start would check it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from forgellm.envelope import JsonRoute
from forgellm.errors import ConfigError
from forgellm.schema.manage import ParsedRecipeReply, RecipeText
from forgellm.schema.recipe import parse_recipe


def make_router() -> APIRouter:
    router = APIRouter(prefix="/api/recipes", route_class=JsonRoute)

    @router.post("/parse")
    def parse(body: RecipeText) -> ParsedRecipeReply:
        """Read a recipe from YAML or JSON. Raises what a start would raise of it."""
        values = _values(body.text)
        recipe = parse_recipe(values, from_text=True)
        return ParsedRecipeReply(recipe=recipe.model_dump(mode="json", exclude_unset=True))

    return router


def _values(text: str) -> dict[str, Any]:
    import yaml  # not at the top: the server is up sooner without it

    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError.one("text", f"is not YAML{place}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError.one("text", "must be `field: value` lines")
    return values
