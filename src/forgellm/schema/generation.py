"""Requests to the model server."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from forgellm.schema.request import Request


class LoadRequest(Request):
    model_name: str = Field(min_length=1, max_length=400)
    adapter_path: str | None = Field(
        None,
        max_length=1000,
        description="A run folder (its best checkpoint) or one checkpoint file.",
    )
    engine: Literal["auto", "torch", "mlx"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    kv_bits: Literal[4, 8] | None = Field(
        default=None,
        description="Keep the key-value cache in so many bits (engine mlx): long contexts take less memory, and answers are made one at a time.",
    )


class Message(Request):
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=1_000_000)


class Sampling(Request):
    """How the next token is chosen. `temperature` 0 is greedy."""

    max_tokens: int = Field(200, ge=1, le=1_000_000)
    temperature: float = Field(0.7, ge=0, le=10)
    top_p: float = Field(0.9, gt=0, le=1)
    repetition_penalty: float = Field(1.1, gt=0, le=10)
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken off a token's logit for each time it was said."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken off a token's logit once it was said."
    )
    seed: int | None = Field(None, ge=0, lt=2**31)


class GenerateRequest(Sampling):
    prompt: str = Field(max_length=1_000_000)
    history: list[Message] = Field(default_factory=list, max_length=10_000)
    streaming: bool = False
    is_base_model: bool | None = Field(
        None, description="true: plain text, no chat template; default: decided by the model."
    )
    request_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="A name of your own to cancel it by; default: one is made.",
    )


class CancelRequest(Request):
    request_id: str | None = Field(
        None, max_length=100, description="As in the reply; without it everything is cancelled."
    )
