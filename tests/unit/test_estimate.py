"""The memory estimate: what makes it grow, and what it suggests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forgellm.catalog import ModelFacts
from forgellm.errors import DoesNotFit
from forgellm.schema.recipe import Recipe, parse_recipe
from forgellm.training.estimate import (
    estimate_memory,
    require_fit,
    resolve_seq_length,
    trainable_parameters,
)

SMOLLM2 = ModelFacts(
    architecture="LlamaForCausalLM",
    model_type="llama",
    type="instruct",
    num_parameters=134_515_008,
    size_bytes=269_000_000,
    dtype="bfloat16",
    quantization=None,
    tie_word_embeddings=True,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    context_length=8192,
)


def recipe(**fields: object) -> Recipe:
    return parse_recipe({"model_name": "m", "dataset": "d", **fields}).resolved()


def test_lora_parameters_are_counted_exactly() -> None:
    # q, o: 576 -> 576; k, v: 576 -> 192; gate, up: 576 -> 1536; down: 1536 -> 576
    per_layer = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)
    assert trainable_parameters(SMOLLM2, recipe(lora_rank=8)) == 30 * 8 * per_layer
    attention = recipe(lora_rank=8, lora_target="attention", num_layers=10)
    assert trainable_parameters(SMOLLM2, attention) == 10 * 8 * (2 * 1152 + 2 * 768)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"batch_size": 2}, {"batch_size": 4}),
        ({"grad_checkpoint": True}, {"grad_checkpoint": False}),
        ({"fine_tune_type": "lora"}, {"fine_tune_type": "full"}),
        ({"lora_rank": 8}, {"lora_rank": 256}),
        ({"num_layers": 5}, {"num_layers": 30}),
    ],
)
def test_estimate_grows_with(less: dict[str, object], more: dict[str, object]) -> None:
    sizes = [estimate_memory(SMOLLM2, recipe(**f), 512, "float32").total for f in (less, more)]
    assert sizes[0] < sizes[1]


def test_what_it_suggests_would_really_fit() -> None:
    wanted = recipe(batch_size=64)
    with pytest.raises(DoesNotFit) as caught:
        require_fit(SMOLLM2, wanted, 3072, "float32", 8_000_000_000)
    words = caught.value.suggestion.replace(",", "").rstrip(".").split()
    suggested = recipe(
        batch_size=int(words[words.index("batch_size") + 1]),
        grad_checkpoint=words[words.index("grad_checkpoint") + 1] == "true",
    )
    seq_len = int(words[words.index("max_seq_length") + 1])
    assert require_fit(SMOLLM2, suggested, seq_len, "float32", 8_000_000_000)


def test_a_model_too_large_for_any_batch_says_so() -> None:
    huge = replace(SMOLLM2, num_parameters=70_000_000_000)
    with pytest.raises(DoesNotFit, match="GB are free") as caught:
        require_fit(huge, recipe(), 512, "bfloat16", 8_000_000_000)
    assert "smaller model" in caught.value.suggestion


def test_sequence_length_defaults_to_3072_within_the_context() -> None:
    assert resolve_seq_length(recipe(), 8192) == 3072
    assert resolve_seq_length(recipe(), 512) == 512
    assert resolve_seq_length(recipe(max_seq_length=4096), 8192) == 4096
    assert resolve_seq_length(recipe(max_seq_length=4096), None) == 4096
