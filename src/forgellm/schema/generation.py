"""Requests to the model server."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from forgellm.schema.request import AllowChangedBase, Request

# Engines count in float32: smaller ones divide to infinity, or leave no token to choose from. At
# these already, nothing but the likeliest token is left.
_LEAST_TEMPERATURE = 1e-3
_LEAST_TOP_P = 1e-6


_LOAD = {"model_name": "mlx-community/Qwen3-4B-bf16", "adapter_path": "models/cpt/my_trained_model"}


class LoadRequest(Request, json_schema_extra={"examples": [_LOAD]}):
    model_name: str = Field(min_length=1, max_length=400)
    adapter_path: str | None = Field(
        None,
        max_length=1000,
        description="A run folder (its best checkpoint; the latest with `@latest` behind it, or one"
        " such as `@300`) or one checkpoint file.",
    )
    beside: bool = Field(
        default=False,
        description="Keep what is loaded, if memory suffices; only the same name is loaded anew.",
    )
    engine: Literal["auto", "torch", "mlx"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    kv_bits: Literal[4, 8] | None = Field(
        default=None,
        description="Keep the key-value cache in so many bits (engine mlx): long contexts take less memory, and answers are made one at a time.",
    )
    allow_changed_base: AllowChangedBase = False


class _Loaded(Request):
    """One of the models that are loaded, by the names that it was loaded by."""

    model_name: str | None = Field(default=None, min_length=1, max_length=400)
    adapter_path: str | None = Field(
        default=None, max_length=1000, description="As it was loaded; needs `model_name`."
    )

    @field_validator("adapter_path")
    @classmethod
    def _needs_model_name(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("model_name", "") is None:
            raise ValueError("needs model_name, the model it belongs to")
        return value


_UNLOAD = {"model_name": "mlx-community/Qwen3-4B-bf16"}


class UnloadRequest(_Loaded, json_schema_extra={"examples": [_UNLOAD]}):
    """Without a name, all models."""


class Message(Request):
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=1_000_000)


class Sampling(Request):
    """How the next token is chosen. `temperature` 0 is greedy."""

    max_tokens: int = Field(200, ge=1, le=1_000_000)
    temperature: float = Field(
        0.7, ge=0, le=10, description="0, like all below 0.001, always takes the likeliest token."
    )
    top_p: float = Field(0.9, gt=0, le=1)
    repetition_penalty: float = Field(1.1, ge=0.01, le=10)
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken off a token's logit for each time it was said."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken off a token's logit once it was said."
    )
    seed: int | None = Field(None, ge=0, lt=2**31)

    @classmethod
    def greedy(cls, max_tokens: int) -> Self:
        """The likeliest token each time, whatever was said before."""
        return cls(
            max_tokens=max_tokens,
            temperature=0.0,
            top_p=1.0,
            repetition_penalty=1.0,
            frequency_penalty=0.0,
            presence_penalty=0.0,
            seed=0,
        )

    @field_validator("temperature")
    @classmethod
    def _greedy_below(cls, value: float) -> float:
        return 0.0 if value < _LEAST_TEMPERATURE else value

    @field_validator("top_p")
    @classmethod
    def _above_float32(cls, value: float) -> float:
        return max(value, _LEAST_TOP_P)


_GENERATE = {
    "prompt": "What is machine learning?",
    "history": [{"role": "system", "content": "You are a helpful AI assistant."}],
    "max_tokens": 200,
    "temperature": 0.7,
    "streaming": False,
}


class GenerateRequest(Sampling, _Loaded, json_schema_extra={"examples": [_GENERATE]}):
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
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Score each token, and name so many of the likeliest in its place.",
    )


class CancelRequest(Request, json_schema_extra={"examples": [{"request_id": "my-question-1"}]}):
    request_id: str | None = Field(
        None, max_length=100, description="As in the reply; without it everything is cancelled."
    )
