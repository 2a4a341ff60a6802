"""The tables of docs/scaling.md: memory as the estimate says it, time from formulas. Nothing is measured.

Letters: N parameters, T tokens of a row, n processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from forgellm.catalog.facts import ModelFacts
from forgellm.hardware import GB
from forgellm.schema.recipe import Recipe
from forgellm.training.estimate import (
    Device,
    estimate_memory,
    is_sharded,
    trainable_parameters,
)
from forgellm.training.fitting import Room, fits, machine_bytes_of, with_parallelism

ROW_TOKENS = 4096
ROWS = (4, 1)  # of a process: the first that fits
TOKENS = 100_000_000
GPUS_A_MACHINE = 8
TERA = 1e12


@dataclass(frozen=True)
class Hardware:
    """Bytes free, operations and bytes a second, and the shares of both that are assumed to be had."""

    room: Room
    peak_flops: float
    utilisation: float
    link_inside: float
    link_between: float
    link_share: float = 0.7


GPU = Hardware(
    Room(Device("torch", "cuda", "bfloat16"), 80 * GB, 2000 * GB, GPUS_A_MACHINE),
    peak_flops=989 * TERA,
    utilisation=0.4,
    link_inside=450 * GB,
    link_between=50 * GB,
)
MAC = Hardware(
    Room(Device("mlx", "metal", "bfloat16"), 412 * GB, 412 * GB),
    peak_flops=28.7 * TERA,
    utilisation=0.5,
    link_inside=10 * GB,
    link_between=10 * GB,
)


def _llama(
    num_parameters: int,
    hidden: int,
    mlp: int,
    layers: int,
    heads: int,
    *,
    tied: bool,
    bits: int = 16,
) -> ModelFacts:
    """A model of Llama 3's shape; `bits` of a stored weight, scales and biases included."""
    return ModelFacts(
        architecture="LlamaForCausalLM",
        model_type="llama",
        type="base",
        num_parameters=num_parameters,
        size_bytes=num_parameters * bits // 8 if bits == 16 else round(num_parameters * 4.5 / 8),
        dtype="bfloat16",
        quantization=None if bits == 16 else "mlx 4-bit",
        tie_word_embeddings=tied,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=64 if hidden == 2048 else 128,
        vocab_size=128_256,
        context_length=131_072,
    )


_70B = (70_553_706_496, 8192, 28_672, 80, 64)
MODELS = {
    "1B": _llama(1_235_814_400, 2048, 8192, 16, 32, tied=True),
    "8B": _llama(8_030_261_248, 4096, 14_336, 32, 32, tied=False),
    "70B": _llama(*_70B, tied=False),
}
PACKED = {"70B, 4 bits": _llama(*_70B, tied=False, bits=4)}


@dataclass(frozen=True)
class Case:
    """A model, `lora` or `full`, on `count` GPUs or Macs."""

    model: str
    kind: str
    count: int
    hardware: Hardware

    @property
    def facts(self) -> ModelFacts:
        return {**MODELS, **PACKED}[self.model]

    def recipe(self) -> Recipe:
        """With as many rows as fit, or one; `parallelism` as `auto` decides it."""
        here = min(self.count, self.hardware.room.num_gpus or 1)
        for rows in ROWS:
            recipe = Recipe(
                model_name="m",
                dataset="d",
                fine_tune_type=self.kind,
                batch_size=rows * self.count,
                grad_checkpoint=True,
                nproc_per_node=here,
                nnodes=self.count // here,
                rdzv_endpoint="first:29400",
            ).resolved()
            recipe = with_parallelism(self.facts, recipe, ROW_TOKENS, self.hardware.room)
            if self.fits(recipe):
                return recipe
        return recipe

    def fits(self, recipe: Recipe) -> bool:
        return fits(self.facts, recipe, ROW_TOKENS, self.hardware.room)

    def compute_seconds(self, num_tokens: float) -> float:
        """6 N operations a token, 4 N where weights are frozen; attention itself not counted."""
        operations = (6 if self.kind == "full" else 4) * self.facts.num_parameters * num_tokens
        return operations / (self.count * self.hardware.peak_flops * self.hardware.utilisation)

    def exchange_seconds(self, recipe: Recipe) -> float:
        """Of a step, in a ring. ddp: gradients, float32, there and back. fsdp: weights gathered for
        the forward and for the backward pass, float32 gradients handed out."""
        part = (self.count - 1) / self.count
        gradients = 4 * trainable_parameters(self.facts, recipe)
        weights = 2 * self.facts.num_parameters if is_sharded(recipe) else 0
        num_bytes = part * (2 * weights + (1 if is_sharded(recipe) else 2) * gradients)
        is_inside = self.count <= (self.hardware.room.num_gpus or 1)
        link = self.hardware.link_inside if is_inside else self.hardware.link_between
        return num_bytes / (link * self.hardware.link_share)


def _row(case: Case, *, with_machine: bool) -> tuple[str, ...]:
    recipe = case.recipe()
    estimate = estimate_memory(case.facts, recipe, ROW_TOKENS, case.hardware.room.device)
    machine = machine_bytes_of(estimate, recipe)
    cells = [case.model, case.kind, str(case.count), recipe.parallelism if case.count > 1 else ""]
    cells += [f"{recipe.batch_size // case.count}", f"{estimate.total / GB:,.0f} GB"]
    cells += [f"{machine / GB:,.0f} GB" if machine else ""] if with_machine else []
    if not case.fits(recipe):
        return (*cells, "does not fit", "", "")
    tokens = recipe.batch_size * ROW_TOKENS
    compute, exchange = case.compute_seconds(tokens), case.exchange_seconds(recipe)
    steps = TOKENS / tokens
    rate, hours = tokens / (compute + exchange), [steps * s / 3600 for s in (compute, exchange)]
    return (*cells, f"{rate:,.0f}", *(_hours(value) for value in hours))


def _hours(value: float) -> str:
    return "" if not value else "under 0.01 h" if value < 0.01 else f"{value:,.2f} h"


def _cases(hardware: Hardware, counts: tuple[int, ...]) -> Iterator[Case]:
    for model in MODELS:
        for kind in ("lora", "full"):
            yield from (Case(model, kind, count, hardware) for count in counts)
    yield from (Case(model, "lora", counts[0], hardware) for model in PACKED)


def gpu_rows() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heading and rows for 1, 8 and 64 GPUs, eight to a machine."""
    heading = ("Model", "Trained", "GPUs", "Divided", "Rows a GPU", "A GPU", "Machine, loading")
    rows = [_row(case, with_machine=True) for case in _cases(GPU, (1, 8, 64))]
    return (*heading, "Tokens per second", "Computing", "Exchange"), rows


def mac_rows() -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heading and rows for 1, 2 and 4 Macs."""
    heading = ("Model", "Trained", "Macs", "Divided", "Rows a Mac", "A Mac")
    rows = [_row(case, with_machine=False) for case in _cases(MAC, (1, 2, 4))]
    return (*heading, "Tokens per second", "Computing", "Exchange"), rows
