"""What a resume needs, in files that the torch engine reads and writes as well."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from forgellm.engines.checkpoint_files import OPTIMIZER_FILE, RNG_FILE, optimizer_files
from forgellm.engines.mlx import load
from forgellm.engines.mlx.optimizer import Moments
from forgellm.engines.mlx.random_state import random_state, set_random_state
from forgellm.engines.mlx.tensor_files import Tensors, read_tensors, save_tensors
from forgellm.errors import CheckpointCorrupt


def save_model(model: nn.Module, base: Path, folder: Path) -> None:
    """All weights, as they are, in Hugging Face layout."""
    folder.mkdir()
    weights = dict(tree_flatten(model.parameters()))
    save_tensors(folder / "model.safetensors", weights)
    shutil.copyfile(base / "config.json", folder / "config.json")


def restore_model(model: nn.Module, folder: Path) -> None:
    """Raises UnsupportedModel if the checkpoint is of another architecture or cannot be read."""
    saved, _ = load.load_model(folder, mx.float32)
    model.update(saved.parameters())


def save_optimizer(moments: Moments, folder: Path) -> list[str]:
    tensors = {}
    for name in moments.exp_avg:
        tensors[f"{name}.exp_avg"] = moments.exp_avg[name]
        tensors[f"{name}.exp_avg_sq"] = moments.exp_avg_sq[name]
        tensors[f"{name}.step"] = moments.step
    save_tensors(folder / OPTIMIZER_FILE, tensors)
    save_tensors(folder / RNG_FILE, {"mlx": random_state()})
    return [OPTIMIZER_FILE, RNG_FILE]


def restore_optimizer(params: Tensors, folder: Path) -> Moments:
    """The moments of `params`; the random state too, if MLX wrote it. Raises CheckpointCorrupt."""
    try:
        state: Tensors = {}
        for file in optimizer_files(folder):
            state |= read_tensors(file)
        random = read_tensors(folder / RNG_FILE)
        moments = Moments(
            {name: state[f"{name}.exp_avg"] for name in params},
            {name: state[f"{name}.exp_avg_sq"] for name in params},
            state[f"{next(iter(params))}.step"],
        )
    except (CheckpointCorrupt, KeyError) as error:
        raise CheckpointCorrupt(f"The optimiser state cannot be read: {error}") from error
    if "mlx" in random:
        set_random_state(random["mlx"])
    return moments
