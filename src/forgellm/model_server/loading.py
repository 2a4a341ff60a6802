"""A loaded model as the server keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Literal

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine
from forgellm.errors import ForgeError
from forgellm.generation.loading import Source, open_source


@dataclass
class LoadedModel:
    """Weights and tokenizer in memory.

    Attributes:
        retired: set when another model takes its place; a running answer then ends.
        in_use: held by the one answer that runs.
    """

    engine: GenerateEngine
    tokenizer: Tokenizer
    retired: Event = field(default_factory=Event)
    in_use: Lock = field(default_factory=Lock)

    @property
    def model_type(self) -> Literal["base", "instruct"]:
        return "base" if self.tokenizer.chat_template is None else "instruct"


Opener = Callable[[Source], LoadedModel]


def open_model(source: Source) -> LoadedModel:
    return LoadedModel(*open_source(source))


def detached(error: ForgeError) -> ForgeError:
    """`error` without its traceback, whose frames would keep weights in memory."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
