"""What is checked before the first update, so that a run does not fail in its middle."""

from __future__ import annotations

from pathlib import Path

from forgellm import hardware
from forgellm.catalog.facts import ModelFacts
from forgellm.data.prepare import PreparedData
from forgellm.engines.base import TrainEngine
from forgellm.errors import DiskTooSmall, OutOfMemory
from forgellm.hardware import GB
from forgellm.schema.recipe import Recipe
from forgellm.training.estimate import MemoryEstimate, checkpoint_bytes, what_fits


def require_disk(folder: Path, facts: ModelFacts, recipe: Recipe) -> None:
    """Room for all checkpoints that are kept and one more while it is written, or DiskTooSmall."""
    saves = -(-recipe.max_iterations // recipe.save_every)
    kept = min(recipe.max_checkpoints, saves) + 1
    needed = kept * checkpoint_bytes(facts, recipe)
    free = hardware.disk_free_bytes(folder)
    if needed > free:
        raise DiskTooSmall(
            f"{kept} checkpoints take {needed / GB:.2f} GB and {free / GB:.2f} GB are free",
            details={"needed_gb": round(needed / GB, 3), "free_gb": round(free / GB, 3)},
        )


def rehearse(
    engine: TrainEngine,
    data: PreparedData,
    facts: ModelFacts,
    recipe: Recipe,
    estimate: MemoryEstimate,
) -> dict[str, float]:
    """One real worst-case step and validation batch; returns the figures for the run's record.

    Raises OutOfMemory, with what would fit, if the machine cannot do it.
    """
    batch = data.worst_case_batch()
    seq_len = batch.tokens.shape[1]
    available = engine.available_bytes() or hardware.memory_available_bytes()
    try:
        measured = engine.rehearse(batch)
        engine.validation_loss([batch], lambda: False)
    except OutOfMemory as error:
        error.suggestion = what_fits(facts, recipe, seq_len, engine.info.dtype, available)
        raise
    return {
        "estimated_gb": round(estimate.total / GB, 3),
        "measured_gb": round(measured / GB, 3),
        "estimate_error": round(estimate.total / measured - 1, 3),
        "available_gb": round(available / GB, 3),
    }
