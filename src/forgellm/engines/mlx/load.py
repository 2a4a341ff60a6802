"""A model folder becomes an mlx-lm model, split into its trunk and its output head."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

# Set before mlx_lm imports transformers: a local folder never needs the hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import get_total_parameters, load_config
from mlx_lm.utils import load_model as load_mlx_lm

from forgellm import hardware
from forgellm.engines.mlx.rope import flat_rope
from forgellm.engines.whole import require_whole
from forgellm.errors import UnsupportedModel

Function = TypeVar("Function", bound=Callable[..., Any])
COMPILE_ON_CPU = False
_EXTRA = re.compile(r"Received \d+ parameters not in model: \n(.*)\.", re.DOTALL)
_MISSING = re.compile(r"Missing \d+ parameters: \n(.*)\.", re.DOTALL)
_SHAPE = re.compile(r"Expected shape (.*) but received shape (.*) for parameter (.*)")
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


@dataclass(frozen=True)
class Placement:
    """Where a model computes and in what type, with the reason."""

    device: str
    dtype: mx.Dtype
    reason: str

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("mlx.core.")


def choose_placement(dtype: str) -> Placement:
    """`dtype` is auto, float32 or bfloat16."""
    if mx.metal.is_available():
        device = "metal"
    else:
        device = "cuda" if mx.default_device().type == mx.gpu else "cpu"
    best, reason = hardware.default_dtype("mlx")
    if device == "cuda":
        best, reason = "bfloat16", "the GPU computes fastest in bfloat16"
    if dtype != "auto":
        best, reason = dtype, "asked for"
    return Placement(device, DTYPES[best], reason)


def compiled(function: Function, **kwargs: Any) -> Function:
    """`function` as one kernel where that pays: on a processor MLX would call a C++ compiler."""
    if mx.default_device().type == mx.cpu and not COMPILE_ON_CPU:
        return function
    return cast("Function", mx.compile(function, **kwargs))


def load_model(folder: Path, dtype: mx.Dtype) -> tuple[nn.Module, dict[str, Any]]:
    """Weights and configuration from a local folder; no code of the model's own is run.

    Quantised weights stay as they are, everything else becomes `dtype`. Raises UnsupportedModel
    when mlx-lm does not know the architecture, the files are bad, or the weights are not just those
    that the architecture has.
    """
    try:
        rope = flat_rope(load_config(folder))
        model, config = load_mlx_lm(folder, lazy=True, model_config=rope)
        model.set_dtype(dtype)
        mx.eval(model.parameters())
    except SystemExit as error:  # as mlx-lm ends where OLMo's own package is not installed
        raise UnsupportedModel(
            "The model cannot be loaded: mlx-lm's code for it asks for a package that is not here",
            suggestion="Use the torch engine.",
        ) from error
    except (ValueError, LookupError, OSError, TypeError, AttributeError, RuntimeError) as error:
        _require_whole(str(error))
        raise UnsupportedModel(
            f"The model cannot be loaded: {_first_line(error)}",
            suggestion="Use a text model whose architecture mlx-lm knows, or the torch engine.",
        ) from error
    return model, config


def _require_whole(message: str) -> None:
    """Raises UnsupportedModel where MLX says which weights do not fit: it does so in words alone."""
    if extra := _EXTRA.match(message):
        require_whole((), extra[1].split(",\n"))
    if missing := _MISSING.match(message):
        require_whole(missing[1].split(",\n"), ())
    if shape := _SHAPE.match(message):
        asked, has = ([int(n) for n in re.findall(r"\d+", shape[i])] for i in (1, 2))
        require_whole((), (), [(shape[3], has, asked)])


@dataclass(frozen=True)
class SplitModel:
    """A model as two functions, so that no `[B, T, vocab]` logits need to exist.

    Attributes:
        trunk: (tokens [B, T], caches) -> hidden states [B, T, D] after the last norm.
        head: hidden states [..., D] -> logits [..., V], with all that the model does to them.
    """

    model: nn.Module
    trunk: Callable[[mx.array, Any], mx.array]
    head: Callable[[mx.array], mx.array]


def split_model(model: nn.Module) -> SplitModel:
    """Where the parts cannot be told apart, the trunk is the whole model and the head does nothing:
    the same numbers, and more memory."""
    text = model.language_model if hasattr(model, "language_model") else model
    split = SplitModel(
        model,
        trunk=lambda tokens, caches: text.model(tokens, cache=caches),
        head=lambda hidden: type(text).__call__(_AfterTrunk(text), hidden),
    )
    if _computes_the_same(split):
        return split
    return SplitModel(
        model,
        trunk=lambda tokens, caches: model(tokens, cache=caches),
        head=lambda logits: logits,
    )


def vocab_size(split: SplitModel) -> int:
    """Width of the logits, which may be more than the tokenizer has tokens."""
    try:
        return int(split.head(split.trunk(mx.array([[0]]), None)).shape[-1])
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise UnsupportedModel(
            f"mlx-lm's code for this model fails: {_first_line(error)}",
            suggestion="Use the torch engine.",
        ) from error


class _AfterTrunk:
    """A model whose trunk hands on what it is given, so that calling it applies the head alone."""

    def __init__(self, text: nn.Module) -> None:
        self._text = text

    @property
    def model(self) -> _Trunk:
        return _Trunk(self._text.model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._text, name)


class _Trunk:
    def __init__(self, trunk: nn.Module) -> None:
        self._trunk = trunk

    def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        return hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trunk, name)


def _computes_the_same(split: SplitModel) -> bool:
    tokens = mx.arange(1, 9)[None]
    try:
        whole = split.model(tokens).astype(mx.float32)
        parts = split.head(split.trunk(tokens, None)).astype(mx.float32)
        return whole.shape == parts.shape and bool(mx.allclose(whole, parts, rtol=1e-2, atol=1e-2))
    except (AttributeError, TypeError, ValueError, IndexError):
        return False


def context_length(config: dict[str, Any]) -> int:
    text = config.get("text_config") or config
    return int(text.get("max_position_embeddings") or 2048)


def num_parameters(model: nn.Module) -> int:
    return int(get_total_parameters(model))


def versions() -> dict[str, str | None]:
    return {"mlx": hardware.package_version("mlx"), "mlx_lm": hardware.package_version("mlx-lm")}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300] or type(error).__name__
