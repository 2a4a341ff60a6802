"""OpenAI's reply objects, whole and in chunks, from the pieces of the choices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel

from forgellm.model_server.openai_answers import Piece
from forgellm.model_server.token_scores import NamedScore, bytes_of
from forgellm.schema.openai import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    TokenLogprob,
    TopLogprob,
    Usage,
)


class Replies(Protocol):
    """One kind of completion: how its pieces become replies."""

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> BaseModel: ...

    def chunks(self, piece: Piece) -> Iterable[BaseModel]: ...

    def last_chunk(self, usage: Usage) -> BaseModel: ...


@dataclass(frozen=True)
class CompletionReplies:
    id: str
    created: int
    model: str
    with_scores: bool

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> Completion:
        return self._completion([self._choice(_joined(pieces)) for pieces in choices], usage)

    def chunks(self, piece: Piece) -> Iterable[Completion]:
        yield self._completion([self._choice(piece)], None)

    def last_chunk(self, usage: Usage) -> Completion:
        return self._completion([], usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None) -> Completion:
        return Completion(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )

    def _choice(self, piece: Piece) -> CompletionChoice:
        return CompletionChoice(
            index=piece.index,
            text=piece.text,
            logprobs=_completion_logprobs(piece.scores) if self.with_scores else None,
            finish_reason=piece.finish_reason,
        )


@dataclass(frozen=True)
class ChatReplies:
    id: str
    created: int
    model: str
    with_scores: bool
    _begun: set[int] = field(default_factory=set)

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> ChatCompletion:
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[self._choice(_joined(pieces)) for pieces in choices],
            usage=usage,
        )

    def chunks(self, piece: Piece) -> Iterable[ChatChunk]:
        """The first of a choice names the role."""
        if piece.index not in self._begun:
            self._begun.add(piece.index)
            yield self._chunk(Piece(piece.index), Delta(role="assistant", content=""))
        yield self._chunk(piece, Delta() if piece.finish_reason else Delta(content=piece.text))

    def last_chunk(self, usage: Usage) -> ChatChunk:
        return ChatChunk(
            id=self.id, created=self.created, model=self.model, choices=[], usage=usage
        )

    def _choice(self, piece: Piece) -> ChatChoice:
        assert piece.finish_reason is not None
        return ChatChoice(
            index=piece.index,
            message=AssistantMessage(content=piece.text),
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish_reason,
        )

    def _chunk(self, piece: Piece, delta: Delta) -> ChatChunk:
        choice = ChatChunkChoice(
            index=piece.index,
            delta=delta,
            logprobs=self._logprobs(piece) if piece.scores else None,
            finish_reason=piece.finish_reason,
        )
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=[choice])

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        if not self.with_scores:
            return None
        return ChatLogprobs(content=[_token_logprob(score) for score in piece.scores])


def _joined(pieces: Sequence[Piece]) -> Piece:
    return Piece(
        pieces[-1].index,
        "".join(piece.text for piece in pieces),
        tuple(score for piece in pieces for score in piece.scores),
        pieces[-1].finish_reason,
    )


def _completion_logprobs(scores: Sequence[NamedScore]) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[score.text for score in scores],
        token_logprobs=[score.log_prob for score in scores],
        top_logprobs=[_top_by_text(score) for score in scores],
        text_offset=[score.offset for score in scores],
    )


def _top_by_text(score: NamedScore) -> dict[str, float] | None:
    """The likeliest and the token itself; of several with the same text, the likeliest counts."""
    if score.log_prob is None:
        return None
    found: dict[str, float] = {}
    for text, value in (*score.top, (score.text, score.log_prob)):
        found.setdefault(text, value)
    return found


def _token_logprob(score: NamedScore) -> TokenLogprob:
    assert score.log_prob is not None
    return TokenLogprob(
        token=score.text,
        logprob=score.log_prob,
        bytes=bytes_of(score.text),
        top_logprobs=[
            TopLogprob(token=text, logprob=value, bytes=bytes_of(text)) for text, value in score.top
        ],
    )
