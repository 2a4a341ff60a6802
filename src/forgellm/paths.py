"""Where things are in a workspace, how a run is named, and the one safe path resolver."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from forgellm.errors import PathNotFound
from forgellm.schema.recipe import Recipe

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,200}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class Workspace:
    """The folder that holds a user's models, datasets and runs. Paths in the API are relative to it."""

    root: Path

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def base_models(self) -> Path:
        return self.models / "base"

    @property
    def published_models(self) -> Path:
        return self.models / "published"

    @property
    def exported_models(self) -> Path:
        """Files for other programs, made of models."""
        return self.models / "exported"

    @property
    def merged_models(self) -> Path:
        """Models that runs started from, made of a model and an earlier run's checkpoint."""
        return self.models / "merged"

    @property
    def datasets(self) -> Path:
        return self.root / "dataset"

    @property
    def cache(self) -> Path:
        return self.root / ".forgellm" / "cache"

    @property
    def conversations(self) -> Path:
        return self.root / ".forgellm" / "conversations"

    def runs(self, training_type: str) -> Path:
        return self.models / training_type

    def relative(self, path: Path) -> str:
        """`path` as the API shows it. Raises PathNotFound if it lies outside the workspace."""
        try:
            return path.resolve().relative_to(self.root.resolve()).as_posix()
        except ValueError:
            raise PathNotFound("Path not found") from None

    def resolve(self, user_path: str, *, below: Path | None = None) -> Path:
        """The existing path that a client means by `user_path`, relative to `below` (or the root).

        Links are followed first, so that one leading outside the workspace is refused.
        Raises PathNotFound, with the same words, for what is absent, outside, or malformed.
        """
        refused = PathNotFound("Path not found", suggestion="Give a path inside the workspace.")
        if not user_path or _CONTROL.search(user_path) or user_path.startswith("~"):
            raise refused
        root = os.path.realpath(self.root)
        try:
            real = os.path.realpath((below or self.root) / user_path, strict=True)
        except (OSError, ValueError):
            raise refused from None
        if real != root and not real.startswith(root + os.sep):
            raise refused
        return Path(real)


def find_workspace(given: str | None = None) -> Workspace:
    """`given`, else `FORGELLM_WORKSPACE`, else the current directory."""
    folder = given or os.environ.get("FORGELLM_WORKSPACE") or "."
    return Workspace(Path(folder).expanduser().resolve())


def run_name(recipe: Recipe, max_seq_length: int, now: datetime) -> str:
    """The folder name of a run, e.g. `Qwen3_4B_bf16_lr5e_05_bs2_iter500_seq3072_2025-01-15_10-30`."""
    model = re.sub(r"[^A-Za-z0-9.]+", "_", recipe.model_name.rstrip("/").rsplit("/", 1)[-1])
    model = model.strip("._") or "model"
    rate = f"{recipe.learning_rate:.0e}" if recipe.learning_rate else "auto"
    return (
        f"{model[:80]}_lr{rate.replace('-', '_')}_bs{recipe.batch_size}"
        f"_iter{recipe.max_iterations}_seq{max_seq_length}_{now:%Y-%m-%d_%H-%M}"
    )


def utc_now() -> datetime:
    return datetime.now(UTC)


def iso_utc(moment: datetime | None = None) -> str:
    """UTC, ISO 8601, with Z, to the millisecond."""
    moment = moment or utc_now()
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def hub_cache() -> Path:
    """The Hugging Face hub cache, as `huggingface_hub` finds it (without importing it)."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
    )
    return Path(home).expanduser() / "hub"
