"""Whether weights are just those that an architecture has: no more, no fewer, of the same shapes.

A library gives random numbers to what a file lacks and passes over what it does not know, which
leaves a model that answers, only wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from forgellm.engines.layers import layer_index
from forgellm.errors import UnsupportedModel

# Parts of published models that a text model does without: what sees and hears, heads that guess
# several tokens at once, and tables that are computed.
_KNOWN_PARTS = re.compile(
    r"(?:^|\.)(?:vision_\w+|visual|image_\w+|audio_\w+|speech_\w+|video_\w+|vit|embed_vision|embed_audio"
    r"|multi_modal_projector|mm_\w+|mtp|mtp_\w+|inv_freq|masked_bias|attn\.bias|attention\.bias)(?:\.|$)"
)
_SHOWN = 5


def foreign(names: Iterable[str], first_extra_layer: int | None = None) -> list[str]:
    """Of the tensors that an architecture has no place for, those that are no known part of another
    kind. Layers from `first_extra_layer` on are heads that guess more tokens, where a model has such.
    """

    def is_known(name: str) -> bool:
        layer = layer_index(name)
        is_extra = (
            first_extra_layer is not None and layer is not None and layer >= first_extra_layer
        )
        return is_extra or bool(_KNOWN_PARTS.search(name))

    return sorted(name for name in names if not is_known(name))


def first_extra_layer(config: Any) -> int | None:
    """Where the weights of heads that guess several tokens begin, which some models have as layers."""
    has_extra = getattr(config, "num_nextn_predict_layers", None)
    return int(config.num_hidden_layers) if has_extra else None


def require_whole(
    missing: Iterable[str], unexpected: Iterable[str], mismatched: Sequence[tuple[Any, ...]] = ()
) -> None:
    """Raises UnsupportedModel, naming the tensors. `mismatched` are (name, shape in the file, shape
    that the configuration asks for)."""
    found = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "mismatched": [
            f"{n} {_sides(has)} instead of {_sides(asks)}" for n, has, asks in mismatched
        ],
    }
    said = {
        "missing": "they lack",
        "unexpected": "they hold what this architecture has no place for:",
        "mismatched": "other shapes than config.json says:",
    }
    problems = [f"{said[kind]} {_some(names)}" for kind, names in found.items() if names]
    if problems:
        raise UnsupportedModel(
            f"The weights are not those of this model: {'; '.join(problems)}",
            suggestion="Download the model again, or use the config.json that belongs to its weights.",
            details={kind: names[:100] for kind, names in found.items() if names},
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:120] for name in names[:_SHOWN]) + more


def _sides(shape: Iterable[int]) -> str:
    return "x".join(str(side) for side in shape) or "scalar"
