"""OpenAI's parameters that are not supported, and the values of them that ask for nothing.

Clients send them whether they need them or not: empty lists, OpenAI's own defaults, nulls, labels for
a bill. Such a request is answered. One that asks for something that would not be done is refused, by
the parameter's name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator
from pydantic import ValidationError as PydanticError

from forgellm.schema.request import Request


def one_message(message: str) -> WrapValidator:
    """One sentence where a union would list what each of its members has against the value."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except PydanticError:
            raise ValueError(message) from None

    return WrapValidator(check)


_REFUSED = one_message("not supported: leave it out, or give the value that asks for nothing")
_Nothing = Annotated[None, _REFUSED]
_EmptyList = Annotated[Annotated[list[Any], Field(max_length=0)] | None, _REFUSED]
_EmptyMap = Annotated[Annotated[dict[str, Any], Field(max_length=0)] | None, _REFUSED]
_NoTool = Annotated[Literal["none", "auto"] | None, _REFUSED]

_LABEL = "Accepted; nothing is made of it."
_IDLE = "Not supported: accepted as long as it asks for nothing."


class TextFormat(Request):
    type: Literal["text"]


class _Sent(Request):
    def asked(self) -> dict[str, Any]:
        """What was given and asks for something or is a label, for another server."""
        idle = {n for n, field in type(self).model_fields.items() if field.description == _IDLE}
        given = self.model_dump(exclude_unset=True, exclude=idle)
        return {name: value for name, value in given.items() if value is not None}


class Unsupported(_Sent):
    """What both kinds of completion have."""

    logit_bias: _EmptyMap = Field(None, description=_IDLE)
    user: str | None = Field(None, description=_LABEL)


class UnsupportedOfCompletions(Unsupported):
    best_of: Annotated[Annotated[int, Field(ge=1, le=1)] | None, _REFUSED] = Field(
        None, description=_IDLE
    )
    suffix: Annotated[Literal[""] | None, _REFUSED] = Field(None, description=_IDLE)


class UnsupportedOfChats(Unsupported):
    audio: _Nothing = Field(None, description=_IDLE)
    function_call: _NoTool = Field(None, description=_IDLE)
    functions: _EmptyList = Field(None, description=_IDLE)
    metadata: dict[str, str] | None = Field(None, description=_LABEL)
    modalities: Annotated[list[Literal["text"]] | None, _REFUSED] = Field(None, description=_IDLE)
    moderation: _Nothing = Field(None, description=_IDLE)
    parallel_tool_calls: bool | None = Field(None, description=_LABEL)
    prediction: dict[str, Any] | None = Field(None, description=_LABEL)
    prompt_cache_key: str | None = Field(None, description=_LABEL)
    prompt_cache_options: dict[str, Any] | None = Field(None, description=_LABEL)
    prompt_cache_retention: str | None = Field(None, description=_LABEL)
    reasoning_effort: _Nothing = Field(None, description=_IDLE)
    response_format: Annotated[TextFormat | None, _REFUSED] = Field(None, description=_IDLE)
    safety_identifier: str | None = Field(None, description=_LABEL)
    service_tier: str | None = Field(None, description=_LABEL)
    store: bool | None = Field(None, description=_LABEL)
    tool_choice: _NoTool = Field(None, description=_IDLE)
    tools: _EmptyList = Field(None, description=_IDLE)
    verbosity: Annotated[Literal["medium"] | None, _REFUSED] = Field(None, description=_IDLE)
    web_search_options: _Nothing = Field(None, description=_IDLE)


class UnsupportedOfMessages(_Sent):
    """What an answer that is sent back as it came has beside its text."""

    annotations: list[Any] | None = Field(None, description=_LABEL)
    audio: _Nothing = Field(None, description=_IDLE)
    function_call: _Nothing = Field(None, description=_IDLE)
    name: str | None = Field(None, description=_LABEL)
    reasoning: _Nothing = Field(None, description=_IDLE)
    reasoning_content: _Nothing = Field(None, description=_IDLE)
    refusal: _Nothing = Field(None, description=_IDLE)
    tool_calls: _EmptyList = Field(None, description=_IDLE)
