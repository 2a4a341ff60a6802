"""The flags of `forgellm train`: each field of the recipe is given as the help says."""

from __future__ import annotations

import argparse
import re
from typing import Any

import pytest

from forgellm.cli.main import all_parsers
from forgellm.cli.train import add_parser, recipe_from
from forgellm.errors import ConfigError
from forgellm.schema.recipe import Recipe, recipe_schema

LISTS = {
    "lora_target": ["q_proj", "v_proj", "down_proj"],
    "probe_files": ["a.json", "b, c.json", "d.json"],
    "general_files": ["shipped", "b, c.txt", "d.txt"],
    "sample_prompts": ["Who?", "When, and why?", "[How]"],
    "report_to": ["tensorboard", "mlflow", "wandb"],
    "hosts": ["gpu1", "gpu2", "gpu3"],
}
BASE = ["--model", "tiny", "--dataset", "notes", "--batch-size", "12"]
TYPES = {"integer": int, "number": float, "string": str, "boolean": bool}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_parser(made.add_subparsers())
    return made


def recipe_of(*flags: str) -> Recipe:
    args = parser().parse_args(["train", *BASE, *flags])
    return recipe_from(
        None, {n: v for n in Recipe.model_fields if (v := getattr(args, n)) is not None}
    )


def options_of(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]


def fields(kind: str) -> list[str]:
    found = recipe_schema()["properties"].items()
    return [
        name for name, schema in found if any(o.get("type") == kind for o in options_of(schema))
    ]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@pytest.mark.parametrize("name", fields("array"))
def test_a_list_takes_one_value_several_and_the_flag_again(name: str) -> None:
    one, two, three = LISTS[name]
    assert getattr(recipe_of(flag(name), one), name) == [one]
    assert getattr(recipe_of(flag(name), one, two, three), name) == [one, two, three]
    assert getattr(recipe_of(flag(name), one, two, flag(name), three), name) == [one, two, three]
    if not any("," in value for value in LISTS[name]):
        assert getattr(recipe_of(flag(name), f"{one},{two}", three), name) == [one, two, three]


def test_a_word_for_a_list_of_its_own_stays_a_word() -> None:
    assert recipe_of("--lora-target", "attention").lora_target == "attention"
    assert recipe_of("--lora-target", "all").lora_target == "all"


@pytest.mark.parametrize("name", fields("object"))
def test_a_map_takes_one_pair_several_and_the_flag_again(name: str) -> None:
    wanted = {"user": "frage, neu", "assistant": "antwort"}
    first, second = (f"{role}={column}" for role, column in wanted.items())
    for flags in ([first, second], [f"{first},{second}"], [first, flag(name), second]):
        assert getattr(recipe_of(flag(name), *flags), name) == wanted
    for wrong in ("user", "user=", "nobody=frage"):
        with pytest.raises(ConfigError, match=name):
            recipe_of(flag(name), wrong)


@pytest.mark.parametrize("name", fields("boolean"))
def test_a_switch_is_turned_on_and_off(name: str) -> None:
    assert getattr(recipe_of(flag(name)), name) is True
    assert getattr(recipe_of("--no-" + flag(name)[2:]), name) is False


@pytest.mark.parametrize("name", sorted({*fields("integer"), *fields("number")}))
def test_a_number_is_given_as_text(name: str) -> None:
    default = getattr(recipe_of().resolved(), name)
    value = 8 if default is None else default
    extra = ["--rdzv-endpoint", "a:1"] if name == "nnodes" else []
    assert getattr(recipe_of(flag(name), str(value), *extra), name) == value
    with pytest.raises(ConfigError, match=name):
        recipe_of(flag(name), "many")


def test_every_flag_says_what_it_takes() -> None:
    (train,) = (
        a.choices["train"]
        for a in all_parsers()._actions
        if isinstance(a, argparse._SubParsersAction)
    )
    told = train.format_help()
    assert "PydanticUndefined" not in told
    for name, schema in recipe_schema()["properties"].items():
        action = next(action for action in train._actions if action.dest == name)
        assert re.search(rf"{flag(name)}\b", told)
        kinds = {option.get("type", "string") for option in options_of(schema)}
        assert (action.nargs == "+") == bool(kinds & {"array", "object"})
        words = [word for option in options_of(schema) for word in option.get("enum", [])]
        shown = action.metavar[0] if isinstance(action.metavar, tuple) else action.metavar or ""
        assert not words or set(words) <= set(shown.split("|"))
