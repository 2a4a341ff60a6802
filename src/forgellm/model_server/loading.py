"""A loaded model as the server keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition, Event
from typing import Literal

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine
from forgellm.errors import ForgeError
from forgellm.generation.loading import Source, open_source


class Users:
    """The answers that use a model: each a `with`, and a wait until there are none."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait_until_none(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0)


@dataclass
class LoadedModel:
    """Weights and tokenizer in memory.

    Attributes:
        retired: set when it is given up; running answers then end.
        users: the answers that run. When there are none, the memory can be had back.
    """

    engine: GenerateEngine
    tokenizer: Tokenizer
    retired: Event = field(default_factory=Event)
    users: Users = field(default_factory=Users)

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
