"""A model's chat template, rendered in a sandbox, with the turns' own text told apart from its own.

A turn's text never becomes control tokens: what a user types stays text, also where it spells one.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forgellm.data.tokenizer import Tokenizer

Turn = dict[str, Any]

MAX_SECONDS = 2.0  # of a processor's time; real templates take milliseconds
MAX_CHARACTERS = 50_000_000
_MARKED = ("content", "reasoning_content")
_PLACEHOLDER = re.compile(r"(\t?)([0-9a-f]{32})x(\d+)x(\t?)")


class TemplateRefused(Exception):
    """The template is broken, does not take this conversation, or takes too much; in its words."""


class Slot(NamedTuple):
    """Where text number `text_number` of a conversation goes, which is turn number `turn`'s, stripped
    as the template strips it."""

    text_number: int
    turn: int
    is_stripped_left: bool
    is_stripped_right: bool

    def text(self, texts: Sequence[str]) -> str:
        text = texts[self.text_number]
        text = text.lstrip() if self.is_stripped_left else text
        return text.rstrip() if self.is_stripped_right else text


Part = str | Slot
"""Of a rendered conversation: the template's own words, or where a turn's go."""
Shape = tuple[tuple[tuple[str, Any], ...], ...]
"""Turns without their texts, which conversations that differ in nothing else have in common."""
_TEXT = object()


def shape_of(turns: Sequence[Turn]) -> tuple[Shape, list[str]]:
    """The turns' shape and their texts."""
    shape, texts = [], []
    for turn in turns:
        fields = []
        for name, value in turn.items():
            if name in _MARKED and isinstance(value, str) and value:
                texts.append(value)
                value = _TEXT
            fields.append((name, value))
        shape.append(tuple(fields))
    return tuple(shape), texts


class ChatTemplate:
    """Raises TemplateRefused if the source is broken.

    Attributes:
        is_timeless: whether it renders the same at any time.
    """

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        self._tokenizer = tokenizer
        self._template = _compiled(source)
        self.is_timeless = "strftime_now" not in source

    def render(
        self, turns: Sequence[Turn], *, for_answer: bool, tools: list[Any] | None = None
    ) -> str:
        """The conversation as text; with `for_answer` up to where the model's answer begins.

        Raises TemplateRefused.
        """
        parts, length = [], 0
        deadline = _deadline.set(time.thread_time() + MAX_SECONDS)
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
                if length > MAX_CHARACTERS:
                    raise TemplateRefused("it makes too much text")
        except _REFUSALS as error:
            raise TemplateRefused(str(error)) from None
        finally:
            _deadline.reset(deadline)
        return "".join(parts)

    def parts(
        self, shape: Shape, *, for_answer: bool, tools: list[Any] | None = None
    ) -> list[Part]:
        """What `render` makes of conversations of this shape. Raises TemplateRefused.

        Unguessable placeholders are rendered in the texts' places. Each stands between tabs: where
        the template strips a text, the tabs are gone, and the text is stripped on the same side.
        """
        key = secrets.token_hex(16)
        turn_of: list[int] = []
        turns: list[Turn] = []
        for number, fields in enumerate(shape):
            turn = dict(fields)
            for name, value in fields:
                if value is _TEXT:
                    turn[name] = f"\t{key}x{len(turn_of)}x\t"
                    turn_of.append(number)
            turns.append(turn)
        return list(_parts(self.render(turns, for_answer=for_answer, tools=tools), key, turn_of))

    def runs(self, parts: Sequence[Part], texts: Sequence[str]) -> Iterator[tuple[str, bool]]:
        """The parts as text, and whether control tokens may be in it: the template's words may be
        some, the turns' text may not. Text that has no part in one is joined with what is around it.
        """
        together = ""
        said = [part if isinstance(part, str) else part.text(texts) for part in parts]
        for number, text in enumerate(said):
            if isinstance(parts[number], Slot) and text:
                after = said[number + 1] if number + 1 < len(said) else ""
                if not self._tokenizer.is_only_text(text, together, after):
                    yield together, True
                    yield text, False
                    together = ""
                    continue
            together += text
        yield together, True

    def spells_control_tokens(self, text: str) -> bool:
        return self._tokenizer.spells_control_tokens(text)


def without_system_turns(turns: Sequence[Turn]) -> list[Turn]:
    """For templates that refuse them: their text stands before that of the first user turn."""
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    rest = [dict(turn) for turn in turns if turn["role"] != "system"]
    first_user = next((turn for turn in rest if turn["role"] == "user"), None)
    if system and first_user is not None:
        first_user["content"] = "\n\n".join([*system, first_user["content"]])
    return rest


def _parts(rendered: str, key: str, turn_of: list[int]) -> Iterator[Part]:
    position = 0
    for found in _PLACEHOLDER.finditer(rendered):
        before, name, number, after = found.groups()
        if name != key:
            continue
        if found.start() > position:
            yield rendered[position : found.start()]
        position = found.end()
        yield Slot(int(number), turn_of[int(number)], not before, not after)
    if position < len(rendered):
        yield rendered[position:]


# What a template can raise: its own errors, and Python's where it computes with the wrong types.
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError)
_MAX_REPEATED = 1_000_000
_deadline: ContextVar[float] = ContextVar("deadline")


class _TimedCode(CodeGenerator):
    """Every block of a template looks at the clock, so that no loop or recursion runs for long."""

    def blockvisit(self, nodes: Any, frame: Frame) -> None:
        self.writeline("environment.check_time()")
        super().blockvisit(nodes, frame)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a limit on time, where no single operation makes much of little."""

    intercepted_binops = frozenset({"*", "**"})
    code_generator_class = _TimedCode

    def check_time(self) -> None:
        if time.thread_time() > _deadline.get():
            raise TemplateRefused("it takes too long")

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
