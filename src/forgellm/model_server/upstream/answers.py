"""An answer of the native API, made of an upstream's stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from forgellm.errors import InvalidRequest
from forgellm.generation.session import CANCELLED, Done
from forgellm.model_server.backend import ScoredText
from forgellm.model_server.tickets import Cancelled, Ticket
from forgellm.model_server.upstream.client import EventStream
from forgellm.schema.answers import FinishReason
from forgellm.schema.generation import GenerateRequest

CHAT, TEXT = "chat/completions", "completions"


def question(request: GenerateRequest, model: str, *, is_base: bool) -> dict[str, Any]:
    """What to send to TEXT for a base model, whose turns are joined as plain text, else to CHAT."""
    turns = [turn.model_dump() for turn in request.history]
    turns.append({"role": "user", "content": request.prompt})
    asked: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
    }
    if request.repetition_penalty != 1:
        asked["repetition_penalty"] = request.repetition_penalty
    if request.seed is not None:
        asked["seed"] = request.seed
    if is_base:
        scores = {"logprobs": request.top_logprobs}
        asked["prompt"] = "\n".join(turn["content"] for turn in turns)
    else:
        scores = {"logprobs": True, "top_logprobs": request.top_logprobs}
        asked["messages"] = turns
    return asked if request.top_logprobs is None else asked | scores


@dataclass
class _Count:
    """What is known of an answer so far. Without the upstream's own count, pieces are counted."""

    pieces: list[str] = field(default_factory=list)
    num_tokens: int | None = None
    num_prompt_tokens: int | None = None
    finish_reason: FinishReason | None = None

    def read_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self.num_tokens = _number(usage.get("completion_tokens"))
            self.num_prompt_tokens = _number(usage.get("prompt_tokens"))

    def done(self, seconds: float, context_length: int | None) -> Done:
        num_tokens = len(self.pieces) if self.num_tokens is None else self.num_tokens
        return Done(
            response="".join(self.pieces),
            tokens_generated=num_tokens,
            generation_time_seconds=round(seconds, 4),
            tokens_per_second=round(num_tokens / seconds, 2) if seconds > 0 else 0.0,
            finish_reason=self.finish_reason or "stop",
            prompt_tokens=self.num_prompt_tokens,
            context_length=context_length,
        )


class UpstreamAnswer:
    """An Answer. It ends the upstream's when it is closed or cancelled."""

    def __init__(
        self,
        events: EventStream,
        ticket: Ticket,
        on_end: Callable[[], None],
        *,
        num_top: int | None,
        context_length: int | None,
    ) -> None:
        self._events, self._ticket, self._on_end = events, ticket, on_end
        self._num_top, self._context_length = num_top, context_length
        self._started = perf_counter()
        self._has_ended = False

    async def __aiter__(self) -> AsyncIterator[ScoredText | Done]:
        """Raises ForgeError."""
        count = _Count()
        try:
            async for event in self._until_cancelled():
                count.read_usage(event.get("usage"))
                piece, reason = _read(event, self._num_top)
                count.finish_reason = reason or count.finish_reason
                if piece.text:
                    count.pieces.append(piece.text)
                    yield piece
        except Cancelled:
            count.finish_reason = "cancelled"
        finally:
            await self.aclose()
        yield count.done(perf_counter() - self._started, self._context_length)

    async def aclose(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._on_end()
        await self._events.aclose()

    async def _until_cancelled(self) -> AsyncIterator[dict[str, Any]]:
        events = aiter(self._events)
        while (
            event := await self._ticket.unless_cancelled(lambda: anext(events, None))
        ) is not None:
            yield event


class CancelledAnswer:
    """Of a request that was cancelled before its answer began."""

    async def __aiter__(self) -> AsyncIterator[ScoredText | Done]:
        yield CANCELLED

    async def aclose(self) -> None:
        pass


def _read(event: dict[str, Any], num_top: int | None) -> tuple[ScoredText, FinishReason | None]:
    """The text of a chunk and why it is the last, if it is. Raises InvalidRequest."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return ScoredText(""), None
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    text = text if isinstance(text, str) else ""
    piece = ScoredText(text)
    if num_top is not None and text:
        piece = replace(piece, scores=_scores(choice.get("logprobs"), num_top))
    return piece, _reason(choice.get("finish_reason"))


def _reason(reason: Any) -> FinishReason | None:
    if reason is None:
        return None
    return reason if reason in ("length", "cancelled") else "stop"


def _scores(found: Any, num_top: int) -> list[dict[str, Any]]:
    """Of either form that OpenAI has. Raises InvalidRequest where there are none."""
    if isinstance(found, dict) and isinstance(content := found.get("content"), list):
        tokens = [(item.get("token"), item.get("logprob"), _pairs(item)) for item in content]
    elif isinstance(found, dict) and isinstance(names := found.get("tokens"), list):
        tops = found.get("top_logprobs") or [{}] * len(names)
        pairs = [list((top or {}).items()) for top in tops]
        tokens = list(zip(names, found.get("token_logprobs") or [], pairs, strict=False))
    else:
        raise InvalidRequest(
            "The upstream gives no log-probabilities of its tokens",
            suggestion="Ask without top_logprobs.",
        )
    return [
        {"token": token, "log_prob": value, "top": _likeliest(top, num_top)}
        for token, value, top in tokens
        if isinstance(token, str) and isinstance(value, int | float)
    ]


def _pairs(item: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [(top.get("token"), top.get("logprob")) for top in item.get("top_logprobs") or []]


def _likeliest(top: list[tuple[Any, Any]], num_top: int) -> list[dict[str, Any]]:
    found = [(name, value) for name, value in top if isinstance(value, int | float)]
    found.sort(key=lambda pair: -pair[1])
    return [{"token": str(name), "log_prob": value} for name, value in found[:num_top]]


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
