"""A model folder becomes a transformers model on a device."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from forgellm import hardware
from forgellm.catalog import read_facts
from forgellm.catalog.safetensors_header import read_header
from forgellm.catalog.safety import MAX_CONFIG_BYTES, read_json, weight_files
from forgellm.engines.whole import first_extra_layer, foreign, require_whole
from forgellm.errors import UnsupportedModel

# Set before transformers is imported: a local folder never needs the hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import transformers
from safetensors.torch import load_file
from transformers.initialization import no_init_weights

from forgellm.engines.torch import attention, quantised
from forgellm.engines.torch.memory import let_go_of_weight_files

# Weights that a configuration describes beyond this are not those beside it. What lies below is
# found by name, once it is loaded.
_MOST_TIMES_HELD = 2
_SMALL_MODEL = 1_000_000

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class Placement:
    """Where a model computes and in what type, with the reason."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def choose_placement(dtype: str) -> Placement:
    """The fastest device that is here; `dtype` is auto, float32 or bfloat16."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
        best, reason = hardware.default_dtype()
    elif hardware.is_apple_silicon() and torch.backends.mps.is_available():
        device, best, reason = torch.device("mps"), "float32", "Metal through PyTorch"
    else:
        device = torch.device("cpu")
        best, reason = hardware.cpu_dtype()
    if dtype != "auto":
        best, reason = dtype, "asked for"
    return Placement(device, cast(torch.dtype, getattr(torch, best)), reason)


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Load safetensors weights from a local folder; no code of the model's own is run.

    Weights in MLX's affine format stay packed. Raises UnsupportedModel when transformers does not
    know the architecture, the files are bad, the weights are not just those that the architecture
    has, or they are quantised in another way.
    """
    is_packed = bool(affine_settings(folder))
    try:
        _require_size(folder)
        if is_packed:
            model = _load_quantised(folder, dtype)
        else:
            model = _load_plain(folder, dtype)
    except (ValueError, KeyError, OSError, TypeError, ImportError, RuntimeError) as error:
        raise UnsupportedModel(
            f"The model cannot be loaded: {_first_line(error)}",
            suggestion="Use a text model whose architecture transformers knows.",
        ) from error
    model = model.to(device)
    attention.use_own_attention(model)
    let_go_of_weight_files()  # which that has read
    return model


def _load_plain(folder: Path, dtype: torch.dtype) -> Any:
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are named below
    )
    extra = foreign(found["unexpected_keys"], first_extra_layer(model.config.get_text_config()))
    require_whole(found["missing_keys"], extra, list(found["mismatched_keys"]))
    return model


def _require_size(folder: Path) -> None:
    """Raises UnsupportedModel where the configuration describes a much larger model than the weights
    are, before memory is taken for it."""
    config = transformers.AutoConfig.from_pretrained(
        str(folder), trust_remote_code=False, local_files_only=True
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    described = {name: parameter.shape for name, parameter in model.named_parameters()}
    total = sum(shape.numel() for shape in described.values())
    held = read_facts(folder, read_json(folder / "config.json", MAX_CONFIG_BYTES)).num_parameters
    if total <= _MOST_TIMES_HELD * held + _SMALL_MODEL:
        return
    headers = [read_header(file) for file in weight_files(folder)]
    stored = {name: info for header in headers for name, info in header.items()}
    plain = [(n, stored[n], asks) for n, asks in described.items() if n in stored]
    odd = [
        (n, i.shape, asks) for n, i, asks in plain if i.dtype != "U32" and i.shape != tuple(asks)
    ]
    require_whole(described.keys() - stored.keys(), (), odd)
    raise UnsupportedModel(
        f"config.json describes a model of {total} parameters; its weights hold {held}",
        suggestion="Use the config.json that was published with these weights.",
    )


def affine_settings(folder: Path) -> dict[str, Any]:
    """How weights are quantised in MLX's affine format; empty for plain ones.

    Raises UnsupportedModel where they are quantised in another way.
    """
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel("The model's config.json cannot be read") from error
    settings: dict[str, Any] = config.get("quantization") or {}
    other = isinstance(settings, dict) and settings.get("mode", "affine") != "affine"
    if other or (config.get("quantization_config") and not settings):
        raise UnsupportedModel(
            "The model's weights are quantised in a way that the torch engine does not compute with",
            suggestion="Use the mlx engine, or the model's bfloat16 or float16 release.",
        )
    return settings


def _load_quantised(folder: Path, dtype: torch.dtype) -> Any:
    config = transformers.AutoConfig.from_pretrained(
        str(folder), trust_remote_code=False, local_files_only=True
    )
    for key in ("quantization", "quantization_config"):
        if hasattr(config, key):
            delattr(config, key)
    with no_init_weights():  # memory is taken when it is written to, so not for what is replaced
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False
        )
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= load_file(file)
    quantised.install(model, tensors, dtype)
    return model.eval()


@dataclass(frozen=True)
class LogitScaling:
    """What happens to logits after the projection to the vocabulary: Gemma caps them, Granite divides,
    Cohere and Falcon-H1 multiply them."""

    softcap: float | None
    logit_scale: float

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits * self.logit_scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


def logit_scaling(model: Any) -> LogitScaling:
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return LogitScaling(cap or getattr(config, "logits_soft_cap", None), scale)


def context_length(model: Any) -> int:
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2048)


def versions() -> dict[str, str | None]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300] or type(error).__name__
