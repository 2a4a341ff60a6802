"""Engines by name. The library behind one is imported when it is asked for, not before."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from forgellm import hardware
from forgellm.errors import CheckpointNotFound, ConfigError, EngineUnavailable
from forgellm.schema.recipe import Recipe

if TYPE_CHECKING:
    from forgellm.engines.base import FuseEngine, GenerateEngine, TrainEngine
    from forgellm.engines.machines import Meeting
    from forgellm.engines.process_group import ProcessGroup


def engine_name(requested: str) -> str:
    """`auto` resolved. Raises ConfigError where the engine's library is not installed."""
    name = hardware.default_engine()[0] if requested == "auto" else requested
    if not hardware.engine_is_installed(name):
        raise ConfigError.one(
            "engine", f"{name} is not installed here; pip install 'forgellm[{name}]'"
        )
    return name


def load_train_engine(recipe: Recipe, model_path: Path) -> TrainEngine:
    """The model with its adapters and optimiser, ready for its first step.

    `recipe` must be resolved. Raises UnsupportedModel, ConfigError, EngineUnavailable.
    """
    make = _engine_class(recipe.engine, "train")
    return cast("TrainEngine", make(recipe, model_path))


def load_generate_engine(
    model_path: Path,
    adapter: Path | None,
    *,
    engine: str = "auto",
    dtype: str = "auto",
    kv_bits: int | None = None,
) -> GenerateEngine:
    """A model that answers. `adapter` is an adapters file or a full checkpoint's folder.

    Raises UnsupportedModel, CheckpointNotFound, ConfigError, EngineUnavailable.
    """
    if adapter is not None and not adapter.exists():
        raise CheckpointNotFound(
            "The checkpoint is gone", suggestion="Load the run again: it takes its best one."
        )
    make = _engine_class(engine, "generate")
    return cast("GenerateEngine", make(model_path, adapter, dtype=dtype, kv_bits=kv_bits))


def load_fuse_engine(engine: str = "auto") -> FuseEngine:
    """What merges a checkpoint into its base: the engine named, or where that is not installed the
    one that is, as they merge alike. Raises EngineUnavailable."""
    here = engine if engine == "auto" or hardware.engine_is_installed(engine) else "auto"
    return cast("FuseEngine", _engine_class(here, "fuse")())


def load_launcher(engine: str) -> Callable[[list[str], Meeting], None]:
    """What runs a module of ours in several processes that train together; see `torch.launch`.

    Raises ConfigError, EngineUnavailable.
    """
    module = _engine_module(engine, "launch")
    return cast("Callable[[list[str], Meeting], None]", module.launch)


def join_group(engine: str) -> ProcessGroup:
    """The processes that this one trains with. Raises PeerLost, ConfigError, EngineUnavailable."""
    return cast("ProcessGroup", _engine_module(engine, "process_group").process_group())


def release_freed_memory() -> None:
    """Have torch, where it is in use, give a GPU's freed memory back. MLX's threads do so themselves."""
    if torch_memory := sys.modules.get("forgellm.engines.torch.memory"):
        torch_memory.release_freed()


def _engine_class(requested: str, part: str) -> Callable[..., Any]:
    """Such as `forgellm.engines.mlx.train.MlxTrainEngine`."""
    name = f"{engine_name(requested).title()}{part.title()}Engine"
    return cast("Callable[..., Any]", getattr(_engine_module(requested, part), name))


def _engine_module(requested: str, part: str) -> ModuleType:
    """Such as `forgellm.engines.mlx.train`."""
    name = engine_name(requested)
    try:
        return importlib.import_module(f"forgellm.engines.{name}.{part}")
    except ImportError as error:
        raise EngineUnavailable(
            f"The {name} engine cannot start: {error}",
            suggestion=f"pip install 'forgellm[{name}]'",
        ) from error
