"""Replies of the model server, whole and streamed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from forgellm.schema.failure import Failure
from forgellm.schema.reply import Item, Reply

FinishReason = Literal["stop", "length", "cancelled"]


class ModelServerHealthReply(Reply):
    status: Literal["healthy"]
    version: str


class LoadReply(Reply):
    message: str = Field(examples=["Model loading started"])
    model_name: str
    adapter_path: str | None


class HeldModel(Item):
    """A model that is loaded, loading, or failed to load."""

    loaded: bool
    is_loading: bool
    model_name: str
    adapter_path: str | None
    iteration: int | None = Field(description="Of the checkpoint, where it is one of a run.")
    model_type: Literal["base", "instruct"] | None
    memory_usage_gb: float | None
    context_length: int | None
    error: dict[str, Any] | None = Field(description="Of a load that failed.")


class ModelStatusReply(Reply):
    """The fields are those of the model that was asked for last."""

    loaded: bool
    is_loading: bool
    model_name: str | None
    adapter_path: str | None
    model_type: Literal["base", "instruct"] | None
    memory_usage_gb: float | None
    error: dict[str, Any] | None = Field(description="Of a load that failed.")
    models: list[HeldModel] = Field(description="All of them, the last one at the end.")
    upstream_models: list[str] | None = Field(
        None, description="Where an upstream answers: the names that it can be loaded by."
    )


class UnloadReply(Reply):
    message: str = Field(examples=["Model unloaded successfully"])


class CancelReply(Reply):
    message: str = Field(examples=["Generation cancelled"])
    cancelled: list[str] = Field(description="The `request_id` of each answer that ends now.")


class Likely(Item):
    """A token's own text and its log-probability in nats; part of a character shows as U+FFFD."""

    token: str
    log_prob: float


class TokenScore(Likely):
    top: list[Likely] = Field(description="The likeliest tokens in its place, likeliest first.")


class _Answer(Item):
    response: str
    tokens_generated: int
    generation_time_seconds: float
    tokens_per_second: float
    finish_reason: FinishReason
    prompt_tokens: int | None = Field(description="null where an upstream does not say.")
    context_length: int | None = Field(
        description="null for an answer that was not begun, and where an upstream does not say."
    )
    request_id: str


class GenerateReply(_Answer, Reply):
    scores: list[TokenScore] | None = Field(None, description="With `top_logprobs`.")


class TokenItem(Item):
    """A piece of a streamed answer."""

    type: Literal["token"]
    text: str
    scores: list[TokenScore] | None = Field(
        None, description="With `top_logprobs`, of the tokens whose text has begun to appear."
    )


class DoneItem(_Answer):
    """The last piece of a streamed answer."""

    type: Literal["done"]


class ErrorItem(Failure):
    """The last piece of an answer that failed after it had begun."""

    type: Literal["error"]
    request_id: str | None = None


def event_stream(item: dict[str, Any], *, last: str | None = None) -> dict[str, Any]:
    """The OpenAPI entry of server-sent events, each with an `item` as JSON, then perhaps `last`."""
    data: dict[str, Any] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": item,
    }
    if last is not None:
        data = {"anyOf": [{"const": last}, data]}
    event = {"type": "object", "required": ["data"], "properties": {"data": data}}
    return {"text/event-stream": {"itemSchema": event}}


def inline_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of `model` in one piece, for a place that cannot point to others."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return whole(parts[value["$ref"].rsplit("/", 1)[-1]])
        return {name: whole(item) for name, item in value.items()}

    found: dict[str, Any] = whole(schema)
    return found


_STREAM_ITEM = {"anyOf": [inline_schema(item) for item in (TokenItem, DoneItem, ErrorItem)]}
GENERATE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Whole, or with `streaming` in pieces",
        "content": {
            **event_stream(_STREAM_ITEM),
            "application/x-ndjson": {"itemSchema": _STREAM_ITEM},
        },
    }
}
