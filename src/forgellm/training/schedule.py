"""Learning-rate schedules: pure functions of the iteration."""

from __future__ import annotations

import math

from forgellm.schema.recipe import Recipe

WSD_DECAY_SHARE = 0.2


def learning_rate(iteration: int, recipe: Recipe) -> float:
    """Learning rate of update `iteration`, 1 to `max_iterations`; `recipe` must be resolved.

    Linear warm-up lies inside `max_iterations`; every shape but `constant` reaches `min_lr` at the
    last update. `wsd` (warm-up, stable, decay; Hu et al. 2024, arXiv 2404.06395) holds the peak
    until the last fifth.
    """
    peak, lowest, warmup = recipe.learning_rate, recipe.min_lr, recipe.warmup_steps
    assert peak is not None and lowest is not None and warmup is not None
    if iteration <= warmup:
        return peak * iteration / warmup
    if recipe.lr_schedule == "constant":
        return peak
    progress = (iteration - warmup) / (recipe.max_iterations - warmup)
    if recipe.lr_schedule == "cosine":
        return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * progress))
    if recipe.lr_schedule == "wsd":
        progress = max(0.0, 1 - (1 - progress) / WSD_DECAY_SHARE)
    return peak + (lowest - peak) * progress
