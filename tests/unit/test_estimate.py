"""The memory estimate: what makes it grow, how processes divide it, and what it suggests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forgellm.catalog import ModelFacts
from forgellm.errors import DoesNotFit
from forgellm.schema.recipe import Recipe, parse_recipe
from forgellm.training.estimate import (
    Device,
    estimate_memory,
    resolve_seq_length,
    trainable_parameters,
)
from forgellm.training.fitting import Room, require_fit, suggest_fitting, with_parallelism

GB = 1_000_000_000
CPU = Device("torch", "cpu", "float32")

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


LLAMA_8B = replace(
    SMOLLM2,
    num_parameters=8_030_261_248,
    size_bytes=16_060_522_496,
    tie_word_embeddings=False,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128_256,
)


def machine(gigabytes: float) -> Room:
    return Room(CPU, int(gigabytes * GB), int(gigabytes * GB))


def gpus(count: int, machine_gigabytes: float = 2000) -> Room:
    """Each of 80 GB."""
    device = Device("torch", "cuda", "bfloat16")
    return Room(device, 80 * GB, int(machine_gigabytes * GB), count)


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
    sizes = [estimate_memory(SMOLLM2, recipe(**f), 512, CPU).total for f in (less, more)]
    assert sizes[0] < sizes[1]


def test_what_it_suggests_would_really_fit() -> None:
    wanted = recipe(batch_size=64)
    with pytest.raises(DoesNotFit) as caught:
        require_fit(SMOLLM2, wanted, 3072, machine(8))
    words = caught.value.suggestion.replace(",", "").rstrip(".").split()
    suggested = recipe(
        batch_size=int(words[words.index("batch_size") + 1]),
        grad_checkpoint=words[words.index("grad_checkpoint") + 1] == "true",
    )
    seq_len = int(words[words.index("max_seq_length") + 1])
    assert require_fit(SMOLLM2, suggested, seq_len, machine(8))


def test_a_model_too_large_for_any_batch_says_so() -> None:
    huge = replace(SMOLLM2, num_parameters=70_000_000_000)
    with pytest.raises(DoesNotFit, match="GB are free") as caught:
        require_fit(huge, recipe(), 512, machine(8))
    assert "smaller model" in caught.value.suggestion


def test_each_process_has_its_rows_of_the_batch() -> None:
    two = recipe(batch_size=4, nproc_per_node=2, parallelism="ddp")
    found = estimate_memory(SMOLLM2, two, 512, CPU)
    alone = estimate_memory(SMOLLM2, recipe(batch_size=2), 512, CPU)
    assert found.process > alone.process  # what the two tell each other goes through
    assert replace(found, process=0) == replace(alone, process=0)


def test_shares_of_a_model_get_smaller_with_the_number_of_processes() -> None:
    device = gpus(8).device

    def one_of(count: int) -> int:
        wanted = recipe(
            fine_tune_type="full", batch_size=count, nproc_per_node=count, parallelism="fsdp"
        )
        found = estimate_memory(LLAMA_8B, wanted, 2048, device)
        assert found.optimizer == pytest.approx(12 * LLAMA_8B.num_parameters / count)
        return found.total

    assert one_of(2) > one_of(8) > one_of(64)
    assert one_of(64) > 2 * LLAMA_8B.num_parameters / LLAMA_8B.num_layers  # a block is whole


def test_offloaded_shares_take_the_machines_memory_and_not_the_gpus() -> None:
    fields = {"fine_tune_type": "full", "batch_size": 8, "nproc_per_node": 8, "parallelism": "fsdp"}
    kept, moved = (
        estimate_memory(LLAMA_8B, recipe(**fields, cpu_offload=flag), 2048, gpus(8).device)
        for flag in (False, True)
    )
    assert (kept.offloaded, moved.optimizer) == (0, 0)
    assert moved.total < kept.total
    assert moved.offloaded == pytest.approx(16 * LLAMA_8B.num_parameters / 8)


@pytest.mark.parametrize(
    ("room", "fields", "chosen"),
    [
        (gpus(8), {}, "ddp"),
        (gpus(8), {"fine_tune_type": "full"}, "fsdp"),
        (gpus(8), {"cpu_offload": True}, "fsdp"),
        (gpus(8), {"parallelism": "ddp", "fine_tune_type": "full"}, "ddp"),
        (replace(gpus(0), device=Device("mlx", "metal", "bfloat16")), {}, "ddp"),
        (machine(2000), {"fine_tune_type": "full"}, "ddp"),
        (machine(400), {"fine_tune_type": "full"}, "fsdp"),  # eight models share it
    ],
)
def test_auto_is_ddp_where_that_fits(room: Room, fields: dict[str, object], chosen: str) -> None:
    wanted = recipe(nproc_per_node=8, batch_size=8, grad_checkpoint=True, **fields)
    assert with_parallelism(LLAMA_8B, wanted, 2048, room).parallelism == chosen


def test_processes_without_gpus_share_their_machines_memory() -> None:
    wanted = recipe(nproc_per_node=4, batch_size=4, parallelism="ddp")
    one = estimate_memory(SMOLLM2, wanted, 512, CPU)
    assert require_fit(SMOLLM2, wanted, 512, machine(4.1 * one.total / GB)) == one
    with pytest.raises(DoesNotFit, match=r"4 processes need about .* GB, ddp") as caught:
        require_fit(SMOLLM2, wanted, 512, machine(3.9 * one.total / GB))
    assert caught.value.details["estimate"] == one.to_dict(4)


def test_sharding_is_suggested_where_whole_models_do_not_fit() -> None:
    whole = recipe(fine_tune_type="full", nproc_per_node=8, batch_size=8, parallelism="ddp")
    with pytest.raises(DoesNotFit) as caught:
        require_fit(LLAMA_8B, whole, 1024, gpus(8))
    assert caught.value.details["fitting"]["parallelism"] == "fsdp"
    assert caught.value.details["fitting"]["batch_size"] == 8


def test_more_gpus_are_suggested_where_one_is_too_small() -> None:
    alone = recipe(fine_tune_type="full", batch_size=1)
    words, change = suggest_fitting(LLAMA_8B, alone, 1024, gpus(8))
    assert change is not None and change["nproc_per_node"] > 1 and "fsdp" in words
    fitting = alone.model_copy(update=change)
    assert require_fit(LLAMA_8B, fitting, change["max_seq_length"], gpus(8))
    words, change = suggest_fitting(LLAMA_8B, alone, 1024, gpus(1))
    assert change is None and "GPUs like this one with parallelism fsdp" in words


def test_a_machine_without_memory_for_the_model_to_share_out_is_found_out() -> None:
    wanted = recipe(fine_tune_type="full", nproc_per_node=8, batch_size=8, parallelism="fsdp")
    with pytest.raises(DoesNotFit, match=r"The machine needs about .* GB, fsdp"):
        require_fit(LLAMA_8B, wanted, 512, gpus(8, machine_gigabytes=20))


def test_sequence_length_defaults_to_3072_within_the_context() -> None:
    assert resolve_seq_length(recipe(), 8192) == 3072
    assert resolve_seq_length(recipe(), 512) == 512
    assert resolve_seq_length(recipe(max_seq_length=4096), 8192) == 4096
    assert resolve_seq_length(recipe(max_seq_length=4096), None) == 4096
