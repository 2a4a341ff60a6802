"""What an adapter is, whichever engine made it: its settings and its two files.

Weights are laid out as mlx-lm lays them out: `lora_a` [in, rank], `lora_b` [rank, out] and, for
DoRA, the magnitude `m` [out]; the adapter adds `scale * (x @ lora_a) @ lora_b`, where scale is
alpha / rank (LoRA: Hu et al. 2021, arXiv 2106.09685; DoRA: Liu et al. 2024, arXiv 2402.09353).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgellm.catalog.safetensors_header import read_header
from forgellm.engines.layers import INPUTS_FIRST, inside_block, layer_index
from forgellm.errors import CheckpointCorrupt, UnsupportedModel
from forgellm.schema.recipe import LoraTarget, Recipe

CONFIG_NAME = "adapter_config.json"
MAX_SCALE = 100_000.0


@dataclass(frozen=True)
class LoraSettings:
    rank: int
    alpha: float
    dropout: float = 0.0
    target: LoraTarget = "all"
    num_layers: int | None = None
    dora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def settings_of(recipe: Recipe) -> LoraSettings:
    return LoraSettings(
        rank=recipe.lora_rank,
        alpha=recipe.lora_alpha or 2.0 * recipe.lora_rank,
        dropout=recipe.lora_dropout,
        target=recipe.lora_target,
        num_layers=recipe.num_layers,
        dora=recipe.fine_tune_type == "dora",
    )


def require_trainable(recipe: Recipe, *, is_quantised: bool) -> None:
    """Raises UnsupportedModel for full fine-tuning of quantised weights."""
    if is_quantised and recipe.fine_tune_type == "full":
        raise UnsupportedModel(
            "Quantised weights cannot be trained themselves",
            suggestion="Train an adapter on them (fine_tune_type lora), or take the model's "
            "bfloat16 release.",
        )


def adapter_config(
    settings: LoraSettings, layer_names: list[str], base_model: str, model_type: str
) -> dict[str, Any]:
    """Contents of `adapter_config.json`, for mlx-lm and PEFT. `layer_names` are full names,
    `model_type` is that of the base's `config.json`."""
    keys = sorted({inside_block(name) for name in layer_names})
    blocks = {index for name in layer_names if (index := layer_index(name)) is not None}
    return {
        "fine_tune_type": "dora" if settings.dora else "lora",
        "num_layers": len(blocks),
        "lora_parameters": {
            "rank": settings.rank,
            "scale": settings.scale,
            "dropout": settings.dropout,
            "keys": keys,
        },
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_dora": settings.dora,
        "target_modules": sorted({key.rsplit(".", 1)[-1] for key in keys}),
        "layers_to_transform": sorted(blocks),
        "fan_in_fan_out": model_type in INPUTS_FIRST,
        "bias": "none",
    }


def settings_beside(file: Path) -> LoraSettings:
    """From the `adapter_config.json` in the file's folder, found to be what the file's weights have.

    Raises UnsupportedModel, and CheckpointCorrupt where the file's header is damaged.
    """
    try:
        config = json.loads((file.parent / CONFIG_NAME).read_text("utf-8"))
        parameters = config["lora_parameters"]
        rank, scale = parameters["rank"], parameters["scale"]
        dora = config.get("fine_tune_type") == "dora"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedModel(
            f"{CONFIG_NAME} beside the adapter is missing or unreadable.",
            suggestion="Keep adapter_config.json in the folder of the adapters file.",
        ) from error
    if type(rank) is not int or rank < 1:
        raise _unfit(f"a rank of {json.dumps(rank)[:40]}")
    if type(scale) not in (int, float) or not 0 < scale <= MAX_SCALE:  # which NaN is not either
        raise _unfit(f"a scale of {json.dumps(scale)[:40]}")
    settings = LoraSettings(rank=rank, alpha=float(scale) * rank, dora=dora)
    _require_one_meaning(config, settings)
    _require_parts(file, settings)
    return settings


def _require_one_meaning(config: dict[str, Any], settings: LoraSettings) -> None:
    """PEFT's keys, where there are any, say the same as mlx-lm's."""
    said = (config.get("r"), config.get("lora_alpha"), config.get("use_dora"))
    own = (settings.rank, settings.alpha, settings.dora)
    for name, value, expected in zip(("r", "lora_alpha", "use_dora"), said, own, strict=True):
        is_number = isinstance(value, int | float)
        if value is not None and not (is_number and math.isclose(value, expected, rel_tol=1e-6)):
            raise _unfit(
                f"{name} {json.dumps(value)[:40]} beside a rank and scale that say {expected}"
            )


def _require_parts(file: Path, settings: LoraSettings) -> None:
    """Each layer has both halves of the adapter's rank and, with DoRA alone, its magnitude."""
    try:
        header = read_header(file)
    except UnsupportedModel as error:
        raise CheckpointCorrupt(f"{file.name} cannot be read: {error.message}") from error
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, info in header.items():
        layer, _, part = name.rpartition(".")
        layers.setdefault(layer, {})[part] = info.shape
    wanted = {"lora_a", "lora_b"} | ({"m"} if settings.dora else set())
    for layer, parts in layers.items():
        if odd := sorted(parts.keys() ^ wanted):
            has = "lacks" if odd[0] in wanted else "has a tensor that no such adapter has:"
            raise _unfit(f"{file.name} {has} {layer}.{odd[0]}")
        a, b = parts["lora_a"], parts["lora_b"]
        # Experts keep a matrix each, and the other way round: [E, rank, in] and [E, out, rank].
        ranks = {len(a) == 3: (a[1:2], b[2:]), len(a) == 2: (a[1:], b[:1])}.get(True)
        if ranks != ((settings.rank,), (settings.rank,)):
            raise _unfit(f"a rank of {settings.rank}, {layer} has weights {a} and {b}")


def require_finite(file: Path, name: str, is_finite: bool) -> None:
    """Raises UnsupportedModel for a tensor with NaN or infinity in it, which would leave no answer."""
    if not is_finite:
        raise UnsupportedModel(
            f"{file.name} holds numbers that are not finite: {name}",
            suggestion="Use an earlier checkpoint, or train again with a lower learning rate.",
            details={"file": file.name, "tensor": name},
        )


def _unfit(found: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{CONFIG_NAME} does not fit the adapter: {found}.",
        suggestion="Restore both files from where the adapter was made.",
        details={"file": CONFIG_NAME},
    )


def require_fit(own: dict[str, tuple[int, ...]], file: dict[str, tuple[int, ...]]) -> None:
    """Raises UnsupportedModel unless an adapter file has just a model's own names and shapes."""
    if own.keys() != file.keys():
        odd = sorted(own.keys() ^ file.keys())[0]
        raise UnsupportedModel(f"The adapter does not fit this model: {odd} has no counterpart.")
    for name, shape in own.items():
        if shape != file[name]:
            raise UnsupportedModel(f"The adapter does not fit this model: shape of {name}.")
