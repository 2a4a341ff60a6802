"""From GGUF metadata to a Hugging Face `config.json`, for the architectures that can be imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgellm.catalog.gguf_file import GgufFile, damaged
from forgellm.errors import UnsupportedModel


@dataclass(frozen=True)
class Architecture:
    """How one GGUF architecture differs from the others.

    Attributes:
        norm_offset: what the converter added to each norm's weight (Gemma scales by 1 + w).
        pairs_rotated: the converter reordered query and key rows, so that rotary pairs lie
            side by side instead of half a head apart.
        mlp_norm: Hugging Face name of the norm that GGUF calls `ffn_norm`.
        post_norms: norms after attention and after the feed-forward part too.
    """

    model_class: str
    model_type: str
    activation: str = "silu"
    norm_offset: float = 0.0
    pairs_rotated: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    mlp_norm: str = "post_attention_layernorm"
    post_norms: bool = False
    rope_theta: float = 10_000.0


ARCHITECTURES = {
    # Mistral and SmolLM2 files carry the architecture `llama` as well.
    "llama": Architecture("LlamaForCausalLM", "llama", pairs_rotated=True),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", qkv_bias=True),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3", qk_norm=True),
    "gemma": Architecture("GemmaForCausalLM", "gemma", "gelu_pytorch_tanh", 1.0),
    "gemma2": Architecture(
        "Gemma2ForCausalLM", "gemma2", "gelu_pytorch_tanh", 1.0,
        mlp_norm="pre_feedforward_layernorm", post_norms=True,
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM", "gemma3_text", "gelu_pytorch_tanh", 1.0, qk_norm=True,
        mlp_norm="pre_feedforward_layernorm", post_norms=True, rope_theta=1_000_000.0,
    ),
}  # fmt: skip


# Divisors of the rotary frequencies, where positions are scaled as in Llama 3.
ROPE_FREQS = "rope_freqs.weight"
# Of so many layers of Gemma 3, the last one sees the whole context.
LOCAL_PATTERN = 6

# The numbers that both formats have: what `config.json` calls them, and the file below the name of
# its architecture.
KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
SCALING_TYPE, SCALING_FACTOR = "rope.scaling.type", "rope.scaling.factor"
SCALING_CONTEXT = "rope.scaling.original_context_length"
ROTATED_DIMENSIONS = "rope.dimension_count"


class Metadata:
    """Typed access to the values under one architecture's prefix."""

    def __init__(self, file: GgufFile, prefix: str) -> None:
        self._values, self._prefix = file.metadata, prefix

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._values.get(f"{self._prefix}.{key}", default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]  # some converters write the same number for each layer
        if type(value) is not int or value <= 0:
            raise damaged(f"{self._prefix}.{key} is missing or not a positive whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self._values.get(f"{self._prefix}.{key}", default)
        if not isinstance(value, float) or not np.isfinite(value):
            raise damaged(f"{self._prefix}.{key} is missing or not a number")
        return float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06

    def get(self, key: str) -> Any:
        return self._values.get(f"{self._prefix}.{key}")


def read_architecture(file: GgufFile) -> Architecture:
    """Raises UnsupportedModel for what cannot be imported, naming what can."""
    name = file.metadata.get("general.architecture")
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None:
        raise UnsupportedModel(
            f"GGUF architecture {str(name)[:60]!r} cannot be imported",
            suggestion=f"Supported: {', '.join(ARCHITECTURES)} (Mistral and SmolLM2 are llama).",
        )
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModel(
            "The GGUF file is one part of several",
            suggestion="Join the parts first (llama-gguf-split --merge), then import the result.",
        )
    if Metadata(file, str(name)).get("expert_count"):
        raise UnsupportedModel(
            "GGUF models with experts (MoE) cannot be imported",
            suggestion="Pull the model from the hub instead: forgellm models pull REPO",
        )
    return architecture


def build_config(file: GgufFile, architecture: Architecture, dtype: str) -> dict[str, Any]:
    """The `config.json` of the imported model."""
    meta = Metadata(file, file.metadata["general.architecture"])
    embeddings = file.tensors.get("token_embd.weight")
    if embeddings is None or len(embeddings.shape) != 2:
        raise damaged("token_embd.weight is missing")
    hidden_size = meta.whole(KEYS["hidden_size"])
    num_heads = meta.whole(KEYS["num_attention_heads"])
    head_dim = meta.whole(KEYS["head_dim"], max(1, hidden_size // num_heads))
    if meta.whole(ROTATED_DIMENSIONS, head_dim) != head_dim:
        raise UnsupportedModel("GGUF models with partly rotated heads cannot be imported")
    config: dict[str, Any] = {
        "architectures": [architecture.model_class],
        "model_type": architecture.model_type,
        "dtype": dtype,
        "vocab_size": embeddings.shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": meta.whole(KEYS["intermediate_size"]),
        "num_hidden_layers": meta.whole(KEYS["num_hidden_layers"]),
        "num_attention_heads": num_heads,
        "num_key_value_heads": meta.whole(KEYS["num_key_value_heads"], num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": meta.whole(KEYS["max_position_embeddings"]),
        "rms_norm_eps": meta.real(KEYS["rms_norm_eps"]),
        "rope_theta": meta.real(KEYS["rope_theta"], architecture.rope_theta),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_token_ids(file),
    }
    if scaling := _rope_scaling(file, meta, head_dim, config["rope_theta"]):
        config["rope_scaling"] = scaling
    if architecture.model_type.startswith("gemma"):
        return config | _gemma(architecture, meta, config)
    config["hidden_act"] = architecture.activation
    if not architecture.qkv_bias:
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if architecture.model_type == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    return config


def _gemma(architecture: Architecture, meta: Metadata, config: dict[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = dict.fromkeys(
        ("hidden_activation", "hidden_act"), architecture.activation
    )
    if architecture.model_type == "gemma":
        return keys
    keys["query_pre_attn_scalar"] = query_scalar(architecture, config)
    if architecture.model_type == "gemma2":
        return keys | {
            "sliding_window": meta.whole(KEYS["sliding_window"], 4096),
            "attn_logit_softcapping": meta.real(KEYS["attn_logit_softcapping"], 50.0),
            "final_logit_softcapping": meta.real(KEYS["final_logit_softcapping"], 30.0),
        }
    return keys | {
        "sliding_window": meta.whole(KEYS["sliding_window"], 1024),
        "sliding_window_pattern": LOCAL_PATTERN,
        "rope_local_base_freq": meta.real(KEYS["rope_local_base_freq"], 10_000.0),
    }


def query_scalar(architecture: Architecture, config: dict[str, Any]) -> int:
    """What Gemma's queries are scaled by, which the files do not say: the head's width, except in
    the two 27B models, which are known by their number of layers."""
    largest = {"gemma2": 46, "gemma3_text": 62}[architecture.model_type]
    if config["num_hidden_layers"] == largest:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _rope_scaling(
    file: GgufFile, meta: Metadata, head_dim: int, rope_theta: float
) -> dict[str, Any] | None:
    if ROPE_FREQS in file.tensors:
        return _llama3_scaling(file, head_dim, rope_theta)
    kind = meta.get(SCALING_TYPE)
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": meta.real(SCALING_FACTOR)}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": meta.real(SCALING_FACTOR),
            "original_max_position_embeddings": meta.whole(SCALING_CONTEXT),
        }
    raise UnsupportedModel(
        f"GGUF models with {str(kind)[:20]!r} position scaling cannot be imported"
    )


def _llama3_scaling(file: GgufFile, head_dim: int, rope_theta: float) -> dict[str, Any] | None:
    """Llama 3's scaling, which the file keeps only as its result: a divisor for each frequency."""
    tensor = file.tensors[ROPE_FREQS]
    divisors = np.concatenate([block.ravel() for block in file.read(tensor)])
    if np.all(divisors == 1):
        return None
    factor, low, high, original = float(divisors.max()), 1.0, 4.0, 8192
    expected = llama3_divisors(head_dim, rope_theta, factor, low, high, original)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise UnsupportedModel("The GGUF file scales positions in an unknown way")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def llama3_divisors(
    head_dim: int, rope_theta: float, factor: float, low: float, high: float, original: int
) -> NDArray[np.float64]:
    """[head_dim / 2] what Llama 3's scaling divides each frequency by; `original` is the context
    length before it, `low` and `high` bound the turns within it between which it sets in."""
    frequencies = rope_theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = original * frequencies / (2 * np.pi)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    divisors: NDArray[np.float64] = 1 / ((1 - blend) / factor + blend)
    return divisors


def _token_ids(file: GgufFile) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "padding": "pad"}
    ids = {
        f"{ours}_token_id": file.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        for theirs, ours in names.items()
    }
    return {key: value for key, value in ids.items() if type(value) is int}
