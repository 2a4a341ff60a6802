"""Each training engine as the shared tests see it: through the protocol, and a little inside."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F

from forgellm.engines.base import TrainEngine
from forgellm.engines.registry import load_train_engine
from forgellm.schema.recipe import Recipe

Arrays = dict[str, np.ndarray]
ENGINES = pytest.mark.parametrize("name", ["torch", "mlx"])


def recipe(name: str, **fields: Any) -> Recipe:
    base = {"model_name": "tiny", "dataset": "d", "dtype": "float32", "lora_rank": 4, "seed": 3}
    return Recipe(**{**base, "engine": name, **fields}).resolved()


def make_engine(name: str, folder: Path, **fields: Any) -> TrainEngine:
    return load_train_engine(recipe(name, **fields), folder)


def trainable(engine: Any) -> Arrays:
    """The trained weights by name."""
    if engine.info.engine == "mlx":
        return {n: np.array(v) for n, v in engine.params.items()}
    return {n: p.detach().numpy().copy() for n, p in engine._trainable.items()}


def gradients(engine: Any) -> Arrays:
    """What the steps since the last update have added up, by name."""
    if engine.info.engine == "mlx":
        return {n: np.array(v) for n, v in (engine._grads or {}).items()}
    return {n: p.grad.numpy().copy() for n, p in engine._trainable.items() if p.grad is not None}


def save(engine: TrainEngine, folder: Path, stem: str = "0000000") -> Path:
    """Weights and optimiser into `folder`; returns the weights' path."""
    folder.mkdir(parents=True, exist_ok=True)
    (written,) = engine.save_weights(folder, stem)
    engine.save_optimizer(folder)
    return folder / written


def with_random_adapters(engine: TrainEngine, folder: Path) -> None:
    """`lora_b` starts at zero, which would hide errors in `lora_a`'s gradient."""
    file = save(engine, folder)
    tensors = safetensors.numpy.load_file(file)
    rng = np.random.default_rng(9)
    for key, value in tensors.items():
        if key.endswith("lora_b"):
            tensors[key] = rng.normal(0, 0.1, value.shape).astype(np.float32)
    safetensors.numpy.save_file(tensors, file)
    engine.restore(file, folder)


def plain_loss(model: Any, documents: Iterable[np.ndarray]) -> tuple[torch.Tensor, int]:
    """Sum of cross-entropies, document by document, by transformers' own logits."""
    total, count = torch.zeros(()), 0
    for tokens in documents:
        ids = torch.from_numpy(tokens).long()[None]
        logits = model(input_ids=ids, use_cache=False).logits
        total = total + F.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum")
        count += len(tokens) - 1
    return total, count
