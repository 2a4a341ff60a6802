"""Several adapters of one base model as one change of its weights.

Each adapter changes a weight [out, in] by a matrix of that shape; these are combined element by
element, weight by weight, and added to the base in float32.

- linear: their weighted sum (task arithmetic: Ilharco et al. 2022, arXiv 2212.04089).
- ties: only the largest of each, only those of the sign that outweighs the other, and the mean of
  these (TIES: Yadav et al. 2023, arXiv 2306.01708; trimmed within each weight, as PEFT does).
- dare_linear, dare_ties: of each a random share, enlarged so that its sum is expected to stay; then
  as linear, or as ties without its trimming (DARE: Yu et al. 2023, arXiv 2311.03099).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from forgellm.engines.adapter import settings_beside
from forgellm.engines.adapter_arrays import Array, Parts, read_layers, weight_change
from forgellm.engines.merging import by_stored_name, require_shape, stores_inputs_first
from forgellm.schema.combining import CombineMethod

SAMPLE_ROWS = 4


def combine(
    changes: Sequence[Array],
    weights: Sequence[float],
    method: CombineMethod,
    density: float,
    random: np.random.Generator,
) -> Array:
    """One change of the shape of each of `changes`, float32."""
    if method == "ties":
        changes = [keep_largest(change, density) for change in changes]
    elif method != "linear":
        changes = [keep_random(change, density, random) for change in changes]
    if method in ("ties", "dare_ties"):
        return mean_of_elected(changes, weights)
    return _weighted_sum(changes, weights)


def keep_largest(change: Array, density: float) -> Array:
    """The `density` share of the elements with the largest magnitude; the others become 0."""
    kept = int(density * change.size)
    if kept == 0:
        return np.zeros_like(change)
    magnitudes = np.abs(change)
    smallest = np.partition(magnitudes.ravel(), -kept)[-kept]
    return np.where(magnitudes >= smallest, change, np.float32(0))


def keep_random(change: Array, density: float, random: np.random.Generator) -> Array:
    """Each element is kept with probability `density`, then divided by it; the others become 0."""
    kept = random.random(change.shape, np.float32) < density
    enlarged: Array = change / np.float32(density)
    return np.where(kept, enlarged, np.float32(0))


def mean_of_elected(changes: Sequence[Array], weights: Sequence[float]) -> Array:
    """Element by element the weighted mean of those whose sign is that of the unweighted sum."""
    is_positive = _weighted_sum(changes, [1.0] * len(changes)) >= 0
    total = np.zeros(changes[0].shape, np.float32)
    count = np.zeros(changes[0].shape, np.float32)
    for change, weight in zip(changes, weights, strict=True):
        elected = np.where(is_positive, change > 0, change < 0)
        total += np.float32(weight) * change * elected
        count += elected
    total /= np.maximum(count, 1)
    return total


def _weighted_sum(changes: Sequence[Array], weights: Sequence[float]) -> Array:
    total = np.zeros(changes[0].shape, np.float32)
    for change, weight in zip(changes, weights, strict=True):
        total += np.float32(weight) * change
    return total


@dataclass(frozen=True)
class Combination:
    """Changes a base model's weights by several adapters. Callable as `FuseEngine.rewrite` wants.

    In memory are the adapters and, for one weight at a time, a float32 copy for each adapter.

    Attributes:
        files: adapter files, each with its `adapter_config.json` beside it.
        seed: of what dare keeps; with a weight's name it decides which elements.
        samples: of each weight changed so far the first rows, as they should be on the disk.
    """

    model_path: Path
    files: Sequence[Path]
    weights: Sequence[float]
    method: CombineMethod
    density: float
    seed: int
    samples: dict[str, Array] = field(default_factory=dict)

    @cached_property
    def adapters(self) -> list[tuple[float, dict[str, Parts]]]:
        """Of each file its scale and its parts by the name of the base's weight."""
        return [
            (settings_beside(file).scale, by_stored_name(read_layers(file), self.model_path))
            for file in self.files
        ]

    @cached_property
    def _inputs_first(self) -> bool:
        return stores_inputs_first(self.model_path)

    @cached_property
    def names(self) -> frozenset[str]:
        """Raises CheckpointCorrupt, UnsupportedModel."""
        return frozenset(name for _, layers in self.adapters for name in layers)

    def __call__(self, name: str, weight: Array) -> Array:
        """`weight`, as the base stores it, with the combined change added. Raises UnsupportedModel."""
        stored, changes, weights = weight, [], []
        weight = stored.T if self._inputs_first else stored
        for (scale, layers), share in zip(self.adapters, self.weights, strict=True):
            if parts := layers.get(name):
                require_shape(name, weight.shape, parts)
                changes.append(weight_change(weight, parts, scale))
                weights.append(share)
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        change = combine(changes, weights, self.method, self.density, random)
        changed = stored + (change.T if self._inputs_first else change)
        self.samples[name] = changed[:SAMPLE_ROWS].copy()
        return changed
