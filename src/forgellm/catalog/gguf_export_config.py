"""From a Hugging Face `config.json` to GGUF metadata: the inverse of `gguf_config.build_config`.

What the format cannot say is refused, as the file would then answer otherwise than the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgellm.catalog.gguf_config import (
    ARCHITECTURES,
    KEYS,
    LOCAL_PATTERN,
    ROTATED_DIMENSIONS,
    SCALING_CONTEXT,
    SCALING_FACTOR,
    SCALING_TYPE,
    Architecture,
    llama3_divisors,
    query_scalar,
)
from forgellm.errors import UnsupportedModel

# Without its sliding window a Mistral model is a llama.
_WRITTEN_AS = {"mistral": "llama"}
_ROPE_SETTINGS = {
    "default": set(),
    "linear": {"factor"},
    "yarn": {"factor", "original_max_position_embeddings"},
    "llama3": {
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    },
}  # fmt: skip


@dataclass(frozen=True)
class ExportConfig:
    """What a GGUF file says of a model's shape.

    Attributes:
        name: of the architecture, in the file.
        config: as `gguf_config.build_config` would make it of the file.
        metadata: keys with their values; whole numbers are written as 32 bits, as are others.
        rope_divisors: [head_dim / 2] the tensor `rope_freqs.weight`, where there is one.
    """

    name: str
    architecture: Architecture
    config: dict[str, Any]
    metadata: dict[str, Any]
    rope_divisors: NDArray[np.float32] | None


def export_config(config: Mapping[str, Any]) -> ExportConfig:
    """Raises UnsupportedModel."""
    name, architecture = _architecture(config)
    numbers = _numbers(config, architecture)
    _require_plain(config, architecture, numbers)
    rope = _rope(config, numbers, architecture)
    numbers |= _gemma_numbers(config, architecture, numbers)
    metadata: dict[str, Any] = {
        f"{name}.{KEYS[key]}": value for key, value in numbers.items() if key in KEYS
    }
    head_dim = numbers["head_dim"]
    metadata |= {
        f"{name}.attention.value_length": head_dim,
        f"{name}.{ROTATED_DIMENSIONS}": head_dim,
    }
    divisors = None
    if rope["rope_type"] == "llama3":
        divisors = llama3_divisors(
            head_dim, numbers["rope_theta"], rope["factor"], rope["low_freq_factor"],
            rope["high_freq_factor"], rope["original_max_position_embeddings"],
        ).astype(np.float32)  # fmt: skip
    elif rope["rope_type"] != "default":
        metadata[f"{name}.{SCALING_TYPE}"] = rope["rope_type"]
        metadata[f"{name}.{SCALING_FACTOR}"] = float(rope["factor"])
        if rope["rope_type"] == "yarn":
            original = int(rope["original_max_position_embeddings"])
            metadata[f"{name}.{SCALING_CONTEXT}"] = original
    return ExportConfig(name, architecture, numbers, metadata, divisors)


def _architecture(config: Mapping[str, Any]) -> tuple[str, Architecture]:
    model_type = _WRITTEN_AS.get(str(config.get("model_type")), config.get("model_type"))
    for name, architecture in ARCHITECTURES.items():
        if architecture.model_type == model_type:
            return name, architecture
    supported = [item.model_type for item in ARCHITECTURES.values()]
    raise UnsupportedModel(
        f"Models of type {str(model_type)[:60]!r} cannot be written as GGUF",
        suggestion=f"Supported: {', '.join([*supported, *_WRITTEN_AS])}.",
    )


def _numbers(config: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        key: _whole(config, key)
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                    "num_attention_heads")
    }  # fmt: skip
    heads = numbers["num_attention_heads"]
    numbers["num_key_value_heads"] = _whole(config, "num_key_value_heads", heads)
    numbers["head_dim"] = _whole(config, "head_dim", max(1, numbers["hidden_size"] // heads))
    numbers["max_position_embeddings"] = _context_length(config)
    numbers["rms_norm_eps"] = _real(config, "rms_norm_eps")
    is_gemma = architecture.model_type.startswith("gemma")  # whose classes tie them by default
    numbers["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", is_gemma))
    numbers["attention_bias"] = bool(config.get("attention_bias"))
    numbers["mlp_bias"] = bool(config.get("mlp_bias"))
    return numbers


def _context_length(config: Mapping[str, Any]) -> int:
    """Where the file cannot say that all layers look back over a window, the context ends with it."""
    length = _whole(config, "max_position_embeddings")
    is_mistral = config.get("model_type") == "mistral"
    if not (is_mistral or config.get("use_sliding_window")):
        return length
    return min(length, _whole(config, "sliding_window", length))


def _require_plain(
    config: Mapping[str, Any], architecture: Architecture, numbers: Mapping[str, Any]
) -> None:
    """Raises UnsupportedModel for what the file would leave out."""
    if config.get("quantization") or config.get("quantization_config"):
        raise UnsupportedModel(
            "The model's weights are quantised already, and would be rounded twice",
            suggestion="Export the model that it was made of, with --type for its precision.",
        )
    activation = config.get("hidden_activation") or config.get("hidden_act")
    has_llama_parts = architecture.model_type == "llama"
    left_out = {
        "hidden_act": activation not in (None, architecture.activation),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1) not in (None, 1, 1.0),
        "attention_bias": bool(config.get("attention_bias"))
        and not has_llama_parts and not architecture.qkv_bias,
        "mlp_bias": bool(config.get("mlp_bias")) and not has_llama_parts,
        "layer_types": not _has_known_layers(config, architecture, numbers),
    }  # fmt: skip
    _refuse([key for key, is_left_out in left_out.items() if is_left_out], config)


def _has_known_layers(
    config: Mapping[str, Any], architecture: Architecture, numbers: Mapping[str, Any]
) -> bool:
    """Whether the layers that see only a window are those that the architecture says."""
    found = config.get("layer_types")
    step = {"gemma2": 2, "gemma3_text": LOCAL_PATTERN}.get(architecture.model_type)
    if step is None:
        return not found or set(found) <= {"full_attention", "sliding_attention"}
    expected = [
        "sliding_attention" if (layer + 1) % step else "full_attention"
        for layer in range(numbers["num_hidden_layers"])
    ]
    return found in (None, expected) and config.get("sliding_window_pattern", step) == step


def _rope(
    config: Mapping[str, Any], numbers: dict[str, Any], architecture: Architecture
) -> dict[str, Any]:
    """How positions are scaled, with its `rope_type`; `numbers` gets the frequencies' bases."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope, local = dict(found), {}
    if "full_attention" in rope:  # for each kind of layer its own
        local, rope = dict(rope.get("sliding_attention") or {}), dict(rope["full_attention"])
    theta = rope.pop("rope_theta", None) or config.get("rope_theta") or architecture.rope_theta
    numbers["rope_theta"] = float(theta)
    if architecture.model_type == "gemma3_text":
        base = local.pop("rope_theta", None) or config.get("rope_local_base_freq") or 10_000.0
        numbers["rope_local_base_freq"] = float(base)
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    settings = {key: value for key, value in rope.items() if value is not None}
    if kind not in _ROPE_SETTINGS or settings.keys() != _ROPE_SETTINGS[kind]:
        _refuse(["rope_parameters"], config)
    if local.get("rope_type", "default") != "default":
        _refuse(["rope_parameters"], config)
    return {"rope_type": kind, **settings}


def _gemma_numbers(
    config: Mapping[str, Any], architecture: Architecture, numbers: dict[str, Any]
) -> dict[str, Any]:
    if not architecture.post_norms:
        return {}
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    has_caps = architecture.model_type == "gemma2"
    wrong = [key for key in caps if (config.get(key) is not None) is not has_caps]
    if config.get("query_pre_attn_scalar") not in (None, query_scalar(architecture, numbers)):
        wrong.append("query_pre_attn_scalar")
    _refuse(wrong, config)
    return {
        "sliding_window": _whole(config, "sliding_window"),
        **{key: _real(config, key) for key in caps if has_caps},
    }


def _refuse(keys: list[str], config: Mapping[str, Any]) -> None:
    if keys:
        shown = ", ".join(f"{key} = {str(config.get(key))[:60]}" for key in keys)
        raise UnsupportedModel(
            f"A GGUF file cannot say what this model's config.json says: {shown}",
            details={"keys": keys},
        )


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or value <= 0:
        raise UnsupportedModel(f"{key} in config.json is missing or not a positive whole number")
    return value


def _real(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UnsupportedModel(f"{key} in config.json is missing or not a number")
    return float(value)
