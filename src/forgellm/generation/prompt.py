"""From a conversation to the token ids that a model reads.

A turn's text never becomes control tokens: what a user types stays text, also where it spells one.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forgellm.data.tokenizer import Tokenizer
from forgellm.errors import InvalidRequest
from forgellm.schema.generation import Message

Turn = dict[str, str]


def build_prompt(
    tokenizer: Tokenizer, prompt: str, history: Iterable[Message], *, is_base_model: bool | None
) -> list[int]:
    """Token ids of `history` followed by `prompt` as the user's turn.

    `is_base_model` true joins everything as plain text; None lets the presence of a chat template
    decide. Raises InvalidRequest, with the template's own words where it refuses the conversation.
    """
    if is_base_model is None:
        is_base_model = tokenizer.chat_template is None
    turns: list[Turn] = [{"role": turn.role, "content": turn.content} for turn in history]
    turns.append({"role": "user", "content": prompt})
    ids = _plain_ids(tokenizer, turns) if is_base_model else _chat_ids(tokenizer, turns)
    if not ids:
        raise InvalidRequest("The prompt is empty", suggestion="Send some text as `prompt`.")
    return ids


def require_room(prompt_ids: list[int], context_length: int) -> None:
    """Raises InvalidRequest if the prompt leaves no token of the context for an answer."""
    if len(prompt_ids) >= context_length:
        raise InvalidRequest(
            f"The prompt has {len(prompt_ids)} tokens, but the model's context holds"
            f" {context_length} with the answer",
            details={"prompt_tokens": len(prompt_ids), "context_length": context_length},
            suggestion="Send a shorter prompt, or leave out the oldest turns of the history.",
        )


def _plain_ids(tokenizer: Tokenizer, turns: list[Turn]) -> list[int]:
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return start + tokenizer.encode("\n".join(turn["content"] for turn in turns))


def _chat_ids(tokenizer: Tokenizer, turns: list[Turn]) -> list[int]:
    if tokenizer.chat_template is None:
        raise InvalidRequest(
            "This model has no chat template, so it cannot take turns",
            suggestion='Send "is_base_model": true for plain text, or load an instruct model.',
        )
    template = _compiled(tokenizer.chat_template)
    if any(_spells_control_tokens(tokenizer, turn["content"]) for turn in turns):
        return _ids_with_protected_contents(tokenizer, template, turns)
    return tokenizer.encode_template(_render_turns(tokenizer, template, turns))


def _spells_control_tokens(tokenizer: Tokenizer, text: str) -> bool:
    return tokenizer.encode_template(text) != tokenizer.encode(text)


def _ids_with_protected_contents(
    tokenizer: Tokenizer, template: Template, turns: list[Turn]
) -> list[int]:
    """Render unguessable placeholders, then encode the template's text and the contents apart.

    Each placeholder stands between tabs: where the template strips a content, the tabs are gone,
    and the content is stripped on the same side.
    """
    key = secrets.token_hex(16)
    contents = {f"{key}x{number}x": turn["content"] for number, turn in enumerate(turns)}
    marked = [
        {"role": turn["role"], "content": f"\t{name}\t"}
        for name, turn in zip(contents, turns, strict=True)
    ]
    pieces = re.split(rf"(\t?{key}x\d+x\t?)", _render_turns(tokenizer, template, marked))
    ids: list[int] = []
    for piece in pieces:
        content = contents.get(piece.strip("\t"))
        if content is None:
            ids += tokenizer.encode_template(piece)
            continue
        content = content if piece.startswith("\t") else content.lstrip()
        content = content if piece.endswith("\t") else content.rstrip()
        ids += tokenizer.encode(content)
    return ids


def _render_turns(tokenizer: Tokenizer, template: Template, turns: list[Turn]) -> str:
    """The rendered conversation; a template that refuses a system turn gets it in the first user turn."""
    try:
        return _render(tokenizer, template, turns)
    except InvalidRequest:
        merged = _without_system_turns(turns)
        if merged == turns:
            raise
        return _render(tokenizer, template, merged)


def _without_system_turns(turns: list[Turn]) -> list[Turn]:
    system = [turn["content"] for turn in turns if turn["role"] == "system"]
    rest = [dict(turn) for turn in turns if turn["role"] != "system"]
    if system:
        first_user = next(turn for turn in rest if turn["role"] == "user")
        first_user["content"] = "\n\n".join([*system, first_user["content"]])
    return rest


def _render(tokenizer: Tokenizer, template: Template, turns: list[Turn]) -> str:
    try:
        return template.render(
            messages=turns,
            add_generation_prompt=True,
            bos_token=tokenizer.bos_token or "",
            eos_token=tokenizer.eos_token or "",
            tools=None,
            documents=None,
        )
    except _REFUSALS as error:
        raise InvalidRequest(
            f"The model's chat template refused the conversation: {error}",
            suggestion="Change the order or roles of the turns in `history`.",
        ) from None


# What a template can raise: its own errors, and Python's where it computes with the wrong types.
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError)


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training masks; for a prompt it is nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    """A template in the sandbox, with the functions that model makers rely on."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise InvalidRequest(
            f"The model's chat template is broken: {error}",
            suggestion='Send "is_base_model": true to talk to the model in plain text.',
        ) from None


def _to_json(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    # Jinja's own filter escapes for HTML, which would change what the model reads.
    return json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
