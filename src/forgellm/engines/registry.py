"""Engines by name. The library behind one is imported when it is asked for, not before."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from forgellm import hardware
from forgellm.errors import ConfigError, EngineUnavailable
from forgellm.schema.recipe import Recipe

if TYPE_CHECKING:
    from forgellm.engines.base import FuseEngine, GenerateEngine, TrainEngine

_MODULES = {"torch": "forgellm.engines.torch"}


def engine_name(requested: str) -> str:
    """`auto` resolved. Raises ConfigError for an engine this version does not have."""
    name = hardware.default_engine()[0] if requested == "auto" else requested
    if name not in _MODULES:
        raise ConfigError.one(
            "engine", f"{name} is not part of this version; use {' or '.join(_MODULES)}"
        )
    return name


def load_train_engine(recipe: Recipe, model_path: Path) -> TrainEngine:
    """The model with its adapters and optimiser, ready for its first step.

    `recipe` must be resolved. Raises UnsupportedModel, ConfigError, EngineUnavailable.
    """
    module = _engine_module(recipe.engine, "train")
    return cast("TrainEngine", module.TorchTrainEngine(recipe, model_path))


def load_generate_engine(
    model_path: Path, adapter: Path | None, *, engine: str = "auto", dtype: str = "auto"
) -> GenerateEngine:
    """A model that answers. `adapter` is an adapters file or a full checkpoint's folder.

    Raises UnsupportedModel, CheckpointNotFound, EngineUnavailable.
    """
    module = _engine_module(engine, "generate")
    return cast("GenerateEngine", module.TorchGenerateEngine(model_path, adapter, dtype=dtype))


def load_fuse_engine(engine: str = "auto") -> FuseEngine:
    """What merges a checkpoint into its base. Raises EngineUnavailable."""
    return cast("FuseEngine", _engine_module(engine, "fuse").TorchFuseEngine())


def _engine_module(requested: str, part: str) -> Any:
    name = engine_name(requested)
    try:
        return importlib.import_module(f"{_MODULES[name]}.{part}")
    except ImportError as error:
        raise EngineUnavailable(
            f"The {name} engine cannot start: {error.name} is not installed.",
            suggestion=f"pip install {error.name}",
        ) from error
