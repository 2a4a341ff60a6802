"""Which model the user of this terminal means, and how it is opened."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from forgellm.errors import ConfigError, InvalidRequest
from forgellm.paths import Workspace

if TYPE_CHECKING:
    from pydantic import BaseModel

    from forgellm.data.tokenizer import Tokenizer
    from forgellm.engines.base import GenerateEngine
    from forgellm.generation.loading import Source

    _Values = TypeVar("_Values", bound=BaseModel)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", help="a model's name or folder (default: what the run was trained from)")
    add(
        "--adapter-path",
        metavar="PATH",
        help="a run's folder (its best checkpoint) or one checkpoint in it",
    )
    add("--workspace", help="folder that holds models/ and dataset/")


def add_changed_base_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-changed-base",
        action="store_true",
        help="go on although the model is not, to the bit, the one that the run was trained on",
    )


@dataclass(frozen=True)
class ModelChoice:
    """A model, and an adapter on top of it, by the names that the user typed."""

    workspace: Workspace
    model_name: str
    adapter_path: str | None = None
    engine: str = "auto"
    dtype: str = "auto"
    kv_bits: int | None = None
    allow_changed_base: bool = False

    @classmethod
    def of_flags(
        cls,
        workspace: Workspace,
        model_name: str | None,
        adapter_path: str | None,
        engine: str = "auto",
        dtype: str = "auto",
        kv_bits: int | None = None,
        *,
        allow_changed_base: bool = False,
    ) -> ModelChoice:
        """Without a model's name, the one that the adapter's run was trained from.

        Raises InvalidRequest, CheckpointNotFound.
        """
        from forgellm.generation.loading import base_model_of, find_weights

        if model_name is None and adapter_path is not None:
            weights = find_weights(adapter_path, workspace, allow_absolute=True)
            model_name = base_model_of(weights, workspace)
        if model_name is None:
            raise InvalidRequest(
                "--model is missing",
                suggestion="Give --model, or the folder of a run as --adapter-path.",
            )
        return cls(workspace, model_name, adapter_path, engine, dtype, kv_bits, allow_changed_base)

    def find(self) -> Source:
        """Raises ConfigError, ModelNotFound, CheckpointNotFound, UnsupportedModel."""
        from forgellm.generation.loading import find_source
        from forgellm.schema.generation import LoadRequest

        request = checked(
            LoadRequest,
            model_name=self.model_name,
            adapter_path=self.adapter_path,
            engine=self.engine,
            dtype=self.dtype,
            kv_bits=self.kv_bits,
            allow_changed_base=self.allow_changed_base,
        )
        return find_source(request, self.workspace, allow_absolute=True)

    def open(self) -> tuple[GenerateEngine, Tokenizer]:
        """Load it, and say so on standard error. Raises ForgeError."""
        from forgellm.cli.terminal_text import clean
        from forgellm.generation.loading import open_source

        source = self.find()
        adapter = f" with {source.adapter.name}" if source.adapter else ""
        title = clean(f"Loading {self.model_name}{adapter}")
        print(f"{title} ... ", end="", file=sys.stderr, flush=True)
        try:
            engine, tokenizer = open_source(source)
        except BaseException:
            print(file=sys.stderr)
            raise
        info = engine.info
        print(f"{info.engine} on {info.device}, {info.dtype}: {info.dtype_reason}", file=sys.stderr)
        return engine, tokenizer


def checked(kind: type[_Values], **values: Any) -> _Values:
    """Raises ConfigError naming every bad value."""
    from pydantic import ValidationError

    from forgellm.schema.recipe import problems_of

    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(problems_of(error)) from None
