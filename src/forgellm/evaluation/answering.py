"""Answers in a model's own words: asked for greedily, compared without regard to form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import GenerateEngine
from forgellm.generation.prompt import build_prompt, stops_of
from forgellm.generation.session import Done, answer
from forgellm.schema.generation import Sampling

PROBE_TOKENS = 48
SAMPLE_TOKENS = 128


def answer_to(engine: GenerateEngine, tokenizer: Tokenizer, question: str, stem: str = "") -> str:
    """The model's likeliest answer to a question, or the likeliest end of a stem.

    A question is a user's turn for a model with a chat template; any other model continues
    `Question: ...`, `Answer:` to the end of the line.
    """
    if stem:
        return greedy(
            engine, tokenizer, stem, plain=True, max_tokens=PROBE_TOKENS, stop="\n"
        ).response
    if tokenizer.chat_template is not None:
        return greedy(engine, tokenizer, question, plain=False, max_tokens=PROBE_TOKENS).response
    text = f"Question: {question}\nAnswer:"
    return greedy(engine, tokenizer, text, plain=True, max_tokens=PROBE_TOKENS, stop="\n").response


def greedy(
    engine: GenerateEngine,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    plain: bool | None,
    max_tokens: int,
    stop: str | None = None,
) -> Done:
    """The likeliest continuation. `plain` as `is_base_model` of `build_prompt`, whose errors it
    raises. A prompt that fills the context has an empty answer."""
    ids = build_prompt(tokenizer, prompt, [], is_base_model=plain)
    sampling = Sampling.greedy(max_tokens)
    stops = (*([] if stop is None else [stop]), *stops_of(tokenizer, is_base_model=plain))
    items = answer(engine, tokenizer, ids, sampling, stop=stops)
    return next(item for item in items if isinstance(item, Done))


def is_right(said: str, answers: Sequence[str], *, whole: bool) -> bool:
    """Whether one of `answers` is all that was said (`whole`), or stands in it as whole words."""
    text = _plain(said)
    wanted = [_plain(item) for item in answers]
    if whole:
        return text in wanted
    return any(re.search(_bounded(item), text) for item in wanted)


def _plain(text: str) -> str:
    """Lower case, one space between words, no punctuation but what stands within a word."""
    text = unicodedata.normalize("NFKC", text).casefold()
    words = (word.strip(_PUNCTUATION) for word in text.split())
    return " ".join(word for word in words if word)


def _bounded(text: str) -> str:
    """Not within a longer word; in scripts without case that may have no spaces, anywhere."""
    before, after = (
        r"(?<!\w)" if text[:1] and not _may_stick(text[0]) else "",
        r"(?!\w)" if text[-1:] and not _may_stick(text[-1]) else "",
    )
    return before + re.escape(text) + after


def _may_stick(character: str) -> bool:
    return unicodedata.category(character) == "Lo"


_PUNCTUATION = "".join(
    chr(code) for code in range(0x3100) if unicodedata.category(chr(code)).startswith("P")
)
