"""Whether a recipe fits into memory, how its processes divide the model, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from forgellm.catalog.facts import ModelFacts
from forgellm.errors import DoesNotFit
from forgellm.hardware import GB
from forgellm.schema.recipe import Recipe
from forgellm.training.estimate import Device, MemoryEstimate, estimate_memory, is_sharded

_SHORTEST = 256
_MOST_PROCESSES = 1024


@dataclass(frozen=True)
class Room:
    """Free memory of each machine that trains; all are taken to be like this one.

    Attributes:
        device: what computes in it.
        free_bytes: of each GPU; without GPUs, of the machine, shared by all its processes.
        machine_bytes: of the machine's own memory.
        num_gpus: of this machine; 0 without.
    """

    device: Device
    free_bytes: int
    machine_bytes: int
    num_gpus: int = 0

    def num_sharing(self, recipe: Recipe) -> int:
        """How many processes take from `free_bytes`."""
        return 1 if self.device.kind == "cuda" else recipe.nproc_per_node

    def holds(self, estimate: MemoryEstimate, recipe: Recipe) -> bool:
        is_enough = machine_bytes_of(estimate, recipe) <= self.machine_bytes
        return is_enough and self.num_sharing(recipe) * estimate.total <= self.free_bytes


def machine_bytes_of(estimate: MemoryEstimate, recipe: Recipe) -> int:
    """Of a machine's own memory while the last of its processes reads the model, if need be after all
    others, to keep a share of it."""
    return estimate.loading + recipe.nproc_per_node * estimate.offloaded


def fits(facts: ModelFacts, recipe: Recipe, seq_len: int, room: Room) -> bool:
    return room.holds(estimate_memory(facts, recipe, seq_len, room.device), recipe)


def with_parallelism(facts: ModelFacts, recipe: Recipe, seq_len: int, room: Room) -> Recipe:
    """The recipe with `parallelism: auto` decided: ddp, which sends less, where that fits."""
    if recipe.parallelism != "auto":
        return recipe
    ddp, fsdp = (recipe.model_copy(update={"parallelism": name}) for name in ("ddp", "fsdp"))
    if recipe.num_processes == 1 or room.device.engine != "torch":
        return ddp
    return fsdp if recipe.cpu_offload or not fits(facts, ddp, seq_len, room) else ddp


def require_fit(facts: ModelFacts, recipe: Recipe, seq_len: int, room: Room) -> MemoryEstimate:
    """Of one process. Raises DoesNotFit, with the change that would make it fit, if the estimate
    exceeds memory."""
    estimate = estimate_memory(facts, recipe, seq_len, room.device)
    if room.holds(estimate, recipe):
        return estimate
    suggestion, change = suggest_fitting(facts, recipe, seq_len, room)
    sharing = room.num_sharing(recipe)
    raise DoesNotFit(
        _lack(estimate, recipe, room),
        suggestion=suggestion,
        details={
            "estimate": estimate.to_dict(sharing),
            "available_gb": round(room.free_bytes / GB, 3),
            "num_processes": sharing,
            "fitting": change,
        },
    )


def _lack(estimate: MemoryEstimate, recipe: Recipe, room: Room) -> str:
    sharing = room.num_sharing(recipe)
    needed, free = sharing * estimate.total, room.free_bytes
    which = f"{sharing} processes" if sharing > 1 else "run"
    if needed <= free:
        sharing, needed, free = 1, machine_bytes_of(estimate, recipe), room.machine_bytes
        which = "machine"
    verb = "need" if sharing > 1 else "needs"
    mode = f", {recipe.parallelism}" if recipe.num_processes > 1 else ""
    return f"The {which} {verb} about {needed / GB:.1f} GB{mode}, and {free / GB:.1f} GB are free"


def suggest_fitting(
    facts: ModelFacts, recipe: Recipe, seq_len: int, room: Room
) -> tuple[str, dict[str, Any] | None]:
    """The smallest change to the division of the model, batch size, sequence length and checkpointing
    that fits, or more processes: in words, and as recipe fields; None where none will do here."""
    for change, tokens in _smaller(recipe, seq_len, room):
        if fits(facts, recipe.model_copy(update=change), tokens, room):
            return _in_words(change), change
    count = _enough_processes(facts, recipe, seq_len, room)
    if count is None:
        return _other_ways(recipe), None
    change = {"parallelism": "fsdp", "nproc_per_node": count, "batch_size": count}
    change |= {"max_seq_length": _SHORTEST, "grad_checkpoint": True}
    if count <= room.num_gpus:
        return _in_words(change), change
    units = "GPUs" if room.device.kind == "cuda" else "machines"
    return (
        f"It would fit {count} {units} like this one with parallelism fsdp. {_other_ways(recipe)}",
        None,
    )


def _smaller(recipe: Recipe, seq_len: int, room: Room) -> Iterator[tuple[dict[str, Any], int]]:
    """Ever smaller work for each process, and its tokens per sequence."""
    count = recipe.num_processes
    rows, tokens = -(-recipe.batch_size // count), seq_len
    modes = [recipe.parallelism]
    if count > 1 and room.device.engine == "torch" and not is_sharded(recipe):
        modes.append("fsdp")
    while True:
        for checkpointing in dict.fromkeys((recipe.grad_checkpoint, True)):
            for mode in modes:
                change: dict[str, Any] = {"batch_size": rows * count, "max_seq_length": tokens}
                change |= {"grad_checkpoint": checkpointing}
                yield change | ({"parallelism": mode} if count > 1 else {}), tokens
        if rows == 1 and tokens <= _SHORTEST:
            return
        rows, tokens = (rows // 2, tokens) if rows > 1 else (1, tokens // 2)


def _enough_processes(facts: ModelFacts, recipe: Recipe, seq_len: int, room: Room) -> int | None:
    """The least number, a power of two, of processes with such memory each that would do."""
    if room.device.engine != "torch":
        return None
    count, tokens = 2, min(seq_len, _SHORTEST)
    while count <= _MOST_PROCESSES:
        here = min(count, room.num_gpus or 1)
        change = {"nproc_per_node": here, "nnodes": -(-count // here), "hosts": []}
        change |= {"parallelism": "fsdp", "batch_size": count, "grad_checkpoint": True}
        if fits(facts, recipe.model_copy(update=change), tokens, room):
            return count
        count *= 2
    return None


def _in_words(change: dict[str, Any]) -> str:
    fields = ", ".join(
        f"{name} {str(value).lower() if isinstance(value, bool) else value}"
        for name, value in change.items()
    )
    return f"This would fit: {fields}."


def _other_ways(recipe: Recipe) -> str:
    if recipe.fine_tune_type == "full":
        return "No batch is small enough; train an adapter: fine_tune_type lora."
    return "No batch is small enough; use a smaller model."
