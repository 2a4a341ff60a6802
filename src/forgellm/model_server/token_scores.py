"""Scored tokens by their text, as OpenAI's `logprobs` name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import ScoredToken
from forgellm.generation.session import INCOMPLETE

_MIN_LOG_PROB = -9999.0  # OpenAI's figure for what a model rules out; JSON has no infinity


@dataclass(frozen=True)
class NamedScore:
    """A token's text and log-probability (None for the first of a prompt), and the likeliest.

    Attributes:
        offset: where the token begins in the choice's text.
    """

    offset: int
    text: str
    log_prob: float | None
    top: tuple[tuple[str, float], ...]


class TokenNames:
    """Each token's own text. A token that holds part of a character shows as U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # After another token, since some decoders drop the space in front of the first.
        before = tokenizer.encode("a")[-1:]
        length = len(tokenizer.decode(before, skip_special=False))
        self.text: Callable[[int], str] = lru_cache(maxsize=None)(
            lambda token_id: tokenizer.decode([*before, token_id], skip_special=False)[length:]
        )

    def score(self, offset: int, token: ScoredToken) -> NamedScore:
        top = tuple((self.text(other), max(value, _MIN_LOG_PROB)) for other, value in token.top)
        return NamedScore(
            offset, self.text(token.token_id), max(token.log_prob, _MIN_LOG_PROB), top
        )


def bytes_of(text: str) -> list[int] | None:
    return None if INCOMPLETE in text else list(text.encode())
