"""Learning-rate schedules: ends, shapes, aliases."""

from __future__ import annotations

import pytest

from forgellm.errors import ConfigError
from forgellm.schema.recipe import Recipe, parse_recipe
from forgellm.training.schedule import learning_rate


def recipe(**fields: object) -> Recipe:
    return parse_recipe(
        {"model_name": "m", "dataset": "d", "max_iterations": 100, "learning_rate": 1e-3, **fields}
    ).resolved()


@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd", "cosine_decay", "linear_decay"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_every_decaying_shape_ends_at_min_lr(shape: str, warmup: int) -> None:
    settings = recipe(lr_schedule=shape, warmup_steps=warmup, min_lr=1e-5)
    assert learning_rate(100, settings) == pytest.approx(1e-5)
    rates = [learning_rate(i, settings) for i in range(1, 101)]
    assert max(rates) == pytest.approx(1e-3, rel=0.03)
    after = rates[warmup:]
    assert after == sorted(after, reverse=True)


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    settings = recipe(warmup_steps=10)
    assert [learning_rate(i, settings) for i in (1, 5, 10)] == pytest.approx([1e-4, 5e-4, 1e-3])


def test_half_way_values() -> None:
    for shape, expected in (("linear", 5.05e-4), ("cosine", 5.05e-4), ("wsd", 1e-3)):
        settings = recipe(lr_schedule=shape, warmup_steps=0, min_lr=1e-5)
        assert learning_rate(50, settings) == pytest.approx(expected)


def test_constant_stays() -> None:
    settings = recipe(lr_schedule="constant", warmup_steps=3)
    assert learning_rate(100, settings) == 1e-3


def test_warm_up_of_the_whole_run_is_possible() -> None:
    settings = recipe(warmup_steps=100)
    assert learning_rate(100, settings) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"warmup_steps": 101}, "warmup_steps"),
        ({"min_lr": 1.0}, "min_lr"),
        ({"lr_schedule": "staircase"}, "lr_schedule"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"validation_split": 0.9}, "validation_split"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"max_checkpoints": 3}, "max_checkpoints"),
    ],
)
def test_impossible_values_name_their_field(fields: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(**fields)
    assert [p["field"] for p in caught.value.details["problems"]] == [field]


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe({"batch_size": -1, "lora_rank": "many"})
    fields = {p["field"] for p in caught.value.details["problems"]}
    assert fields == {"dataset", "batch_size", "lora_rank"}


def test_a_webhook_address_that_cannot_be_parsed_is_a_wrong_field() -> None:
    with pytest.raises(ConfigError, match="webhook_url"):
        parse_recipe({"model_name": "m", "dataset": "d", "webhook_url": "http://[abc/x"})
