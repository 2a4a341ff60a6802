"""From token ids to text as it appears, with the figures of the answer at its end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter

from forgellm.data.chat.turn_ends import stop_ids
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine, ScoredToken
from forgellm.generation.stop_strings import StopStrings
from forgellm.schema.answers import FinishReason
from forgellm.schema.generation import Sampling

INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class PlacedScore:
    """A token's score, and where in the response its text begins."""

    offset: int
    token: ScoredToken


@dataclass(frozen=True)
class Token:
    """What one more token added to the text: nothing while a character is incomplete.

    Attributes:
        scores: where asked for, those of the tokens whose text has begun to appear.
    """

    text: str
    scores: tuple[PlacedScore, ...] = ()


@dataclass(frozen=True)
class Done:
    """The figures of an answer. The prompt's are 0 and None where it was never read, and both None
    where an upstream that answers does not say."""

    response: str
    tokens_generated: int
    generation_time_seconds: float
    tokens_per_second: float
    finish_reason: FinishReason
    prompt_tokens: int | None = 0
    context_length: int | None = None


CANCELLED = Done("", 0, 0.0, 0.0, "cancelled")


def _never() -> bool:
    return False


def answer(
    engine: GenerateEngine,
    tokenizer: Tokenizer,
    prompt_ids: list[int],
    sampling: Sampling,
    *,
    stop: Sequence[str] = (),
    num_top: int | None = None,
    is_cancelled: Callable[[], bool] = _never,
) -> Generator[Token | Done]:
    """Yield a Token for each id the engine makes, then one Done.

    The texts joined are the response, which ends before the first of the `stop` strings. With
    `num_top`, tokens carry scores; the token that ended the answer has one too, but no text.
    Closing the iterator stops the engine.
    """
    started = perf_counter()
    text = TextStream(tokenizer)
    shown = _Shown(stop)
    was_cancelled = False
    ends = stop_ids(tokenizer)
    with closing(_tokens(engine, prompt_ids, sampling, ends, num_top)) as tokens:
        for token_id, score in tokens:
            if score is not None:
                shown.hold(PlacedScore(len(text.emitted), score))
            if token_id not in ends:
                yield shown.add(text.add(token_id))
            was_cancelled = is_cancelled()
            if shown.is_complete or was_cancelled:
                break
    if not shown.is_complete and (rest := text.rest()):
        yield shown.add(rest)
    if (last := shown.rest()) is not None:
        yield last
    seconds = perf_counter() - started
    count = len(text.ids)
    is_full = count >= sampling.max_tokens or len(prompt_ids) + count >= engine.info.context_length
    finish_reason: FinishReason = "length" if is_full else "stop"
    if shown.is_complete or was_cancelled:
        finish_reason = "stop" if shown.is_complete else "cancelled"
    yield Done(
        response=shown.text,
        tokens_generated=count,
        generation_time_seconds=round(seconds, 4),
        tokens_per_second=round(count / seconds, 2) if seconds > 0 else 0.0,
        finish_reason=finish_reason,
        prompt_tokens=len(prompt_ids),
        context_length=engine.info.context_length,
    )


def _tokens(
    engine: GenerateEngine,
    prompt_ids: list[int],
    sampling: Sampling,
    ends: frozenset[int],
    num_top: int | None,
) -> Generator[tuple[int, ScoredToken | None]]:
    if num_top is not None:
        for token in engine.generate_scored(prompt_ids, sampling, ends, num_top):
            yield token.token_id, token
        return
    ids = engine.generate(prompt_ids, sampling, ends)
    try:
        for token_id in ids:
            yield token_id, None
    finally:
        if isinstance(ids, Generator):
            ids.close()


class _Shown:
    """What of the text may be seen already, and the scores that go with it."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.text = ""
        self._stop = StopStrings(stop)
        self._scores: list[PlacedScore] = []

    @property
    def is_complete(self) -> bool:
        """Whether a stop string was found."""
        return self._stop.found

    def hold(self, score: PlacedScore) -> None:
        self._scores.append(score)

    def add(self, text: str) -> Token:
        self.text += (seen := self._stop.add(text))
        return Token(seen, self._take(lambda score: score.offset < len(self.text)))

    def rest(self) -> Token | None:
        """What was held back to the end; a stop string and what follows it stay unseen."""
        if self.is_complete:
            return None
        self.text += (seen := self._stop.rest())
        scores = self._take(lambda score: True)
        return Token(seen, scores) if seen or scores else None

    def _take(self, is_shown: Callable[[PlacedScore], bool]) -> tuple[PlacedScore, ...]:
        taken = tuple(score for score in self._scores if is_shown(score))
        self._scores = self._scores[len(taken) :]
        return taken


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
