"""From token ids to text as it appears, with the figures of the answer at its end."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine
from forgellm.schema.generation import Sampling

INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Token:
    """What one more token added to the text: nothing while a character is incomplete."""

    text: str


@dataclass(frozen=True)
class Done:
    response: str
    tokens_generated: int
    generation_time_seconds: float
    tokens_per_second: float
    finish_reason: Literal["stop", "length"]


def answer(
    engine: GenerateEngine, tokenizer: Tokenizer, prompt_ids: list[int], sampling: Sampling
) -> Generator[Token | Done]:
    """Yield a Token for each id the engine makes, then one Done.

    The texts joined are the response. Closing the iterator stops the engine.
    """
    started = perf_counter()
    text = TextStream(tokenizer)
    ids = engine.generate(prompt_ids, sampling, tokenizer.stop_ids)
    try:
        for token_id in ids:
            yield Token(text.add(token_id))
    finally:
        if isinstance(ids, Generator):
            ids.close()
    if rest := text.rest():
        yield Token(rest)
    seconds = perf_counter() - started
    count = len(text.ids)
    is_full = count >= sampling.max_tokens or len(prompt_ids) + count >= engine.info.context_length
    yield Done(
        response=text.emitted,
        tokens_generated=count,
        generation_time_seconds=round(seconds, 4),
        tokens_per_second=round(count / seconds, 2) if seconds > 0 else 0.0,
        finish_reason="length" if is_full else "stop",
    )


class TextStream:
    """Decodes ids one by one without ever splitting a character.

    A character can span tokens; until it is whole, the decoded tail shows as U+FFFD and is held
    back. Only the ids since the last whole character and one piece of context before them are
    decoded again, so that a long answer costs no more per token than a short one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ids: list[int] = []
        self.emitted = ""
        self._tokenizer = tokenizer
        self._context_start = 0  # ids from here are decoded: the last piece, as context, ...
        self._unread_start = 0  # ... then the ids whose text has not been given out

    def add(self, token_id: int) -> str:
        self.ids.append(token_id)
        piece = self._unread_text()
        if not piece or piece.endswith(INCOMPLETE):
            return ""
        self._context_start, self._unread_start = self._unread_start, len(self.ids)
        self.emitted += piece
        return piece

    def rest(self) -> str:
        """What is still held back when no more ids come."""
        piece = self._unread_text()
        self._unread_start = len(self.ids)
        self.emitted += piece
        return piece

    def _unread_text(self) -> str:
        context = self._tokenizer.decode(self.ids[self._context_start : self._unread_start])
        return self._tokenizer.decode(self.ids[self._context_start :])[len(context) :]
