"""What an adapter is, whichever engine made it: its settings and its two files.

Weights are laid out as mlx-lm lays them out: `lora_a` [in, rank], `lora_b` [rank, out] and, for
DoRA, the magnitude `m` [out]; the adapter adds `scale * (x @ lora_a) @ lora_b`, where scale is
alpha / rank (LoRA: Hu et al. 2021, arXiv 2106.09685; DoRA: Liu et al. 2024, arXiv 2402.09353).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgellm.engines.layers import inside_block
from forgellm.errors import UnsupportedModel
from forgellm.schema.recipe import LoraTarget, Recipe

CONFIG_NAME = "adapter_config.json"


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
    settings: LoraSettings, layer_names: list[str], base_model: str
) -> dict[str, Any]:
    """Contents of `adapter_config.json`, for mlx-lm and PEFT. `layer_names` are full names."""
    keys = sorted({inside_block(name) for name in layer_names})
    blocks = {name.split(".layers.", 1)[-1].split(".", 1)[0] for name in layer_names}
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
        "layers_to_transform": sorted(int(block) for block in blocks if block.isdigit()),
        "bias": "none",
    }


def settings_beside(file: Path) -> LoraSettings:
    """From the `adapter_config.json` in the file's folder. Raises UnsupportedModel."""
    try:
        config = json.loads((file.parent / CONFIG_NAME).read_text("utf-8"))
        parameters = config["lora_parameters"]
        rank, scale = int(parameters["rank"]), float(parameters["scale"])
        dora = config.get("fine_tune_type") == "dora"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(
            f"{CONFIG_NAME} beside the adapter is missing or unreadable.",
            suggestion="Keep adapter_config.json in the folder of the adapters file.",
        ) from error
    return LoraSettings(rank=rank, alpha=scale * rank, dora=dora)


def require_fit(own: dict[str, tuple[int, ...]], file: dict[str, tuple[int, ...]]) -> None:
    """Raises UnsupportedModel unless an adapter file has just a model's own names and shapes."""
    if own.keys() != file.keys():
        odd = sorted(own.keys() ^ file.keys())[0]
        raise UnsupportedModel(f"The adapter does not fit this model: {odd} has no counterpart.")
    for name, shape in own.items():
        if shape != file[name]:
            raise UnsupportedModel(f"The adapter does not fit this model: shape of {name}.")
