"""Which of a model's layers a recipe means, from their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from forgellm.errors import ConfigError, UnsupportedModel
from forgellm.schema.recipe import LoraTarget

_IN_ATTENTION = re.compile(r"(?:^|[._])(?:attn|attention)(?:[._]|$)")
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# Model types whose linear layers are transformers' Conv1D, with weights [in, out].
INPUTS_FIRST = frozenset({"gpt2", "openai-gpt"})


def layer_index(name: str) -> int | None:
    """The block number in a module name such as `model.layers.12.mlp.up_proj`."""
    match = _BLOCK.search(name)
    return int(match.group(1)) if match else None


def num_blocks(names: Iterable[str]) -> int:
    """How many blocks a model has, from the names of its modules or parameters."""
    return max((i for i in map(layer_index, names) if i is not None), default=-1) + 1


def target_layers(
    linear_names: Iterable[str], target: LoraTarget, num_layers: int | None
) -> list[str]:
    """Those of a model's linear layers, inside blocks, that `lora_target` and `num_layers` select.

    Raises UnsupportedModel if there are none, and ConfigError if `lora_target` names a layer that
    the model does not have.
    """
    linears = {n: i for n in linear_names if (i := layer_index(n)) is not None}
    if not linears:
        raise UnsupportedModel(
            "LoRA finds no linear layer in this model's blocks",
            suggestion="Train its weights themselves: fine_tune_type full.",
        )
    first = 0 if num_layers is None else max(0, num_blocks(linears) - num_layers)
    chosen = [n for n, i in linears.items() if i >= first and _matches(n, target)]
    if not chosen and target == "all":
        raise ConfigError.one("num_layers", "the last layers of this model have no linear layer")
    if not chosen or (
        isinstance(target, list) and not all(any(_matches(n, [t]) for n in linears) for t in target)
    ):
        known = sorted({n.rsplit(".", 1)[-1] for n in linears})
        raise ConfigError.one(
            "lora_target", f"names no layer of this model; it has {', '.join(known)}"
        )
    return chosen


def _matches(name: str, target: LoraTarget) -> bool:
    if target == "all":
        return True
    if target == "attention":
        return _IN_ATTENTION.search(inside_block(name)) is not None
    return any(name == t or name.endswith("." + t) for t in target)


def last_blocks(parameter_names: Iterable[str], num_layers: int | None) -> list[str]:
    """The parameters that full fine-tuning trains: all, or those of the last `num_layers` blocks."""
    names = list(parameter_names)
    first = max(0, num_blocks(names) - num_layers) if num_layers else 0
    return [n for n in names if first == 0 or ((i := layer_index(n)) is not None and i >= first)]


def inside_block(name: str) -> str:
    """`self_attn.q_proj` of `model.layers.3.self_attn.q_proj`."""
    match = _BLOCK.search(name)
    return name[match.end() :] if match else name
