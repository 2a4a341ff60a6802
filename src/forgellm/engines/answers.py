"""An answer in the making, between the thread that asked and the thread that computes."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event

from forgellm.engines.base import ScoredToken
from forgellm.errors import ForgeError
from forgellm.schema.generation import Sampling

Token = tuple[int, ScoredToken | None]


@dataclass(frozen=True, eq=False)
class Question:
    """What to continue, and how.

    Attributes:
        max_tokens: at least 1, and no more than the context has room for.
        num_top: likeliest tokens to give with each token; None where no scores are asked for.
    """

    prompt_ids: list[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    max_tokens: int
    num_top: int | None = None


class Answer:
    """The worker puts tokens in, the thread that asked takes them out."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self._items: SimpleQueue[Token | Exception | None] = SimpleQueue()
        self._closed = Event()

    def put(self, token_id: int, score: ScoredToken | None) -> None:
        self._items.put((token_id, score))

    def end(self, error: Exception | None = None) -> None:
        """No more tokens. Each answer gets an error of its own: several may be told of one."""
        self._items.put(error if error is None else _twin(error))

    @property
    def is_closed(self) -> bool:
        """Whether nobody waits for more tokens."""
        return self._closed.is_set()

    def close(self) -> None:
        """To be called by who asked: nobody waits any more."""
        self._closed.set()

    def tokens(self) -> Generator[Token]:
        """As they are made. Raises what ended the answer. Closing it ends the work."""
        try:
            while (item := self._items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.close()


def _twin(error: Exception) -> Exception:
    """Without a traceback, whose frames would keep the model in memory."""
    if not isinstance(error, ForgeError):
        return RuntimeError(f"{type(error).__name__}: {error}")
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    return twin
