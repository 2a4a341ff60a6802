"""A model's chat template, rendered in a sandbox, with the turns' own text told apart from its own.

A turn's text never becomes control tokens: what a user types stays text, also where it spells one.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forgellm.data.tokenizer import Tokenizer

Turn = dict[str, Any]

MAX_SECONDS = 10.0
MAX_CHARACTERS = 50_000_000
_MARKED = ("content", "reasoning_content")


class TemplateRefused(Exception):
    """The template is broken, does not take this conversation, or takes too much; in its words."""


class Piece(NamedTuple):
    """A stretch of a rendered conversation.

    Attributes:
        turn: whose text it is, by the turn's number; None for the template's own words.
    """

    text: str
    turn: int | None


class ChatTemplate:
    """Raises TemplateRefused if the source is broken."""

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        self._tokenizer = tokenizer
        self._template = _compiled(source)

    def render(
        self, turns: Sequence[Turn], *, for_answer: bool, tools: list[Any] | None = None
    ) -> str:
        """The conversation as text; with `for_answer` up to where the model's answer begins.

        Raises TemplateRefused.
        """
        started, parts, length = time.monotonic(), [], 0
        try:
            for part in self._template.generate(
                messages=list(turns),
                add_generation_prompt=for_answer,
                bos_token=self._tokenizer.bos_token or "",
                eos_token=self._tokenizer.eos_token or "",
                tools=tools,
                documents=None,
            ):
                parts.append(part)
                length += len(part)
                if length > MAX_CHARACTERS or time.monotonic() - started > MAX_SECONDS:
                    raise TemplateRefused("it takes too long, or makes too much text")
        except _REFUSALS as error:
            raise TemplateRefused(str(error)) from None
        return "".join(parts)

    def pieces(
        self, turns: Sequence[Turn], *, for_answer: bool, tools: list[Any] | None = None
    ) -> list[Piece]:
        """As `render`, cut where the turns' own text begins and ends. Raises TemplateRefused.

        Unguessable placeholders are rendered in the text's place. Each stands between tabs: where
        the template strips a text, the tabs are gone, and the text is stripped on the same side.
        """
        key = secrets.token_hex(16)
        texts: list[tuple[int, str]] = []
        marked = [dict(turn) for turn in turns]
        for number, turn in enumerate(marked):
            for name in _MARKED:
                if isinstance(turn.get(name), str) and turn[name]:
                    texts.append((number, turn[name]))
                    turn[name] = f"\t{key}x{len(texts) - 1}x\t"
        rendered = self.render(marked, for_answer=for_answer, tools=tools)
        return list(_pieces(re.split(rf"(\t?{key}x\d+x\t?)", rendered), key, texts))

    def ids(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids: the template's words may be control tokens, the turns' text may not.

        Text without control tokens is read together with what is around it, as a model meets it.
        """
        ids: list[int] = []
        together = ""
        for piece in pieces:
            if piece.turn is None or not self.spells_control_tokens(piece.text):
                together += piece.text
                continue
            ids += self._tokenizer.encode_template(together)
            ids += self._tokenizer.encode(piece.text)
            together = ""
        return ids + self._tokenizer.encode_template(together)

    def spells_control_tokens(self, text: str) -> bool:
        return self._tokenizer.encode_template(text) != self._tokenizer.encode(text)


def without_system_turns(turns: Sequence[Turn]) -> list[Turn]:
    """For templates that refuse them: their text stands before that of the first user turn."""
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    rest = [dict(turn) for turn in turns if turn["role"] != "system"]
    first_user = next((turn for turn in rest if turn["role"] == "user"), None)
    if system and first_user is not None:
        first_user["content"] = "\n\n".join([*system, first_user["content"]])
    return rest


def _pieces(parts: list[str], key: str, texts: list[tuple[int, str]]) -> Iterator[Piece]:
    for part in parts:
        name = part.strip("\t")
        if not name.startswith(f"{key}x"):
            if part:
                yield Piece(part, None)
            continue
        turn, text = texts[int(name.split("x")[1])]
        text = text if part.startswith("\t") else text.lstrip()
        text = text if part.endswith("\t") else text.rstrip()
        if text:
            yield Piece(text, turn)


# What a template can raise: its own errors, and Python's where it computes with the wrong types.
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError)
_MAX_REPEATED = 1_000_000


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which nothing grows without bound by one multiplication."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [
            len(side) if isinstance(side, (str, list, tuple)) else side for side in (left, right)
        ]
        if operator == "**" or any(isinstance(side, (str, list, tuple)) for side in (left, right)):
            if not all(isinstance(size, (int, float)) for size in sizes):
                raise TypeError("cannot multiply these")
            if abs(sizes[0] * sizes[1]) > _MAX_REPEATED or operator == "**" and abs(sizes[1]) > 64:
                raise OverflowError("a template may not make so much of so little")
        return super().call_binop(context, operator, left, right)


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words; they are found without it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    """A template in the sandbox, with the functions that model makers rely on."""
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except (TemplateError, RecursionError) as error:
        raise TemplateRefused(f"it is broken: {error}") from None


def _to_json(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    # Jinja's own filter escapes for HTML, which would change what the model reads.
    return json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
