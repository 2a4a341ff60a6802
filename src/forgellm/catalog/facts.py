"""What a model is, from its configuration and the headers of its weights alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forgellm.catalog.safetensors_header import TensorInfo, read_header
from forgellm.catalog.safety import MAX_TOKENIZER_CONFIG_BYTES, read_json, weight_files
from forgellm.errors import UnsupportedModel

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a decoder model; None where its configuration does not say.

    Attributes:
        num_parameters: counted from the weight headers; tied embeddings count once.
        dtype: the type most weight bytes are stored in.
        size_bytes: of the weight files.
        quantization: e.g. "mlx 4-bit" or the method's name; None for plain weights.
    """

    architecture: str
    model_type: str
    type: Literal["base", "instruct"]
    num_parameters: int
    size_bytes: int
    dtype: str
    quantization: str | None
    tie_word_embeddings: bool
    hidden_size: int | None
    intermediate_size: int | None
    num_layers: int | None
    num_heads: int | None
    num_kv_heads: int | None
    head_dim: int | None
    vocab_size: int | None
    context_length: int | None


def read_facts(folder: Path, config: dict[str, Any]) -> ModelFacts:
    """Facts about the model in `folder`. Raises UnsupportedModel if a weight file is damaged."""
    files = weight_files(folder)
    tensors = {name: info for file in files for name, info in read_header(file).items()}
    text = config.get("text_config") or config
    numbers = _Numbers(text if isinstance(text, dict) else config)
    num_heads = numbers.get("num_attention_heads", "n_head")
    hidden_size = numbers.get("hidden_size", "n_embd")
    tied = bool(numbers.config.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    derived_head_dim = hidden_size // num_heads if hidden_size and num_heads else None
    architectures = config.get("architectures")
    architectures = architectures if isinstance(architectures, list) else None
    return ModelFacts(
        architecture=str((architectures or ["unknown"])[0]),
        model_type=str(config.get("model_type", "unknown")),
        type=model_type_of(folder),
        num_parameters=_num_parameters(tensors, tied, _mlx_quantization(config)),
        size_bytes=sum(file.stat().st_size for file in files),
        dtype=_main_dtype(tensors),
        quantization=_quantization(config),
        tie_word_embeddings=tied,
        hidden_size=hidden_size,
        intermediate_size=numbers.get("intermediate_size", "n_inner"),
        num_layers=numbers.get("num_hidden_layers", "n_layer"),
        num_heads=num_heads,
        num_kv_heads=numbers.get("num_key_value_heads") or num_heads,
        head_dim=numbers.get("head_dim") or derived_head_dim,
        vocab_size=numbers.get("vocab_size"),
        context_length=numbers.get("max_position_embeddings", "n_positions"),
    )


def model_type_of(folder: Path) -> Literal["base", "instruct"]:
    """`instruct` if the model has a chat template; its name does not count."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return "instruct"
    try:
        settings = read_json(folder / "tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES)
    except UnsupportedModel:
        return "base"
    return "instruct" if settings.get("chat_template") else "base"


class _Numbers:
    """Positive whole numbers of a configuration, under any of the names they go by."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def get(self, *names: str) -> int | None:
        for name in names:
            value = self.config.get(name)
            if type(value) is int and value > 0:
                return value
        return None


def _num_parameters(
    tensors: dict[str, TensorInfo], tied: bool, mlx_quantization: dict[str, Any]
) -> int:
    total = 0
    for name, info in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "weight" and info.dtype == "U32" and f"{stem}.scales" in tensors:
            # MLX packs several weights into a word, and keeps one scale for each group of weights.
            layer = mlx_quantization.get(stem)
            settings = layer if isinstance(layer, dict) else mlx_quantization
            group_size = _Numbers(settings).get("group_size") or 64
            total += tensors[f"{stem}.scales"].num_elements * group_size
        elif leaf in ("scales", "biases") and f"{stem}.weight" in tensors:
            continue
        elif not (tied and name.endswith("lm_head.weight")):
            total += info.num_elements
    return total


def _main_dtype(tensors: dict[str, TensorInfo]) -> str:
    sizes: Counter[str] = Counter()
    for info in tensors.values():
        sizes[info.dtype] += info.num_bytes
    dtype = sizes.most_common(1)[0][0] if sizes else "unknown"
    return _DTYPES.get(dtype, dtype.lower())


def _mlx_quantization(config: dict[str, Any]) -> dict[str, Any]:
    settings = config.get("quantization")
    return settings if isinstance(settings, dict) else {}


def _quantization(config: dict[str, Any]) -> str | None:
    # mlx-lm writes its settings under both keys; only other libraries name a method.
    if settings := _mlx_quantization(config):
        return f"mlx {settings.get('bits', '?')}-bit"
    other = config.get("quantization_config")
    return str(other.get("quant_method", "unknown")) if isinstance(other, dict) and other else None
