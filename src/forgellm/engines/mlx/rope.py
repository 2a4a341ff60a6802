"""Rotary settings where mlx-lm looks for them.

transformers writes them into `rope_parameters` since its version 5, and most of mlx-lm's models
still read `rope_theta` and `rope_scaling`. They would silently compute with a default.
"""

from __future__ import annotations

from typing import Any


def flat_rope(config: dict[str, Any]) -> dict[str, Any]:
    """What a model's configuration lacks of the older names. Where they are, they stay."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}
    found = {}
    if isinstance(local := rope.get("sliding_attention"), dict):
        found["rope_local_base_freq"] = local.get("rope_theta")
    if isinstance(whole := rope.get("full_attention"), dict):
        rope = whole
    found["rope_theta"] = rope.get("rope_theta")
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = rope
    missing = {name for name in found if config.get(name) is None}
    return {name: found[name] for name in missing if found[name] is not None}
