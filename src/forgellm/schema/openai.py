"""The OpenAI-compatible part of the model server's API: requests and replies.

Fields that would change the answer but are not supported are refused, not passed over.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from forgellm.schema.openai_parameters import (
    Unsupported,
    UnsupportedOfChats,
    UnsupportedOfCompletions,
    UnsupportedOfMessages,
    one_message,
)
from forgellm.schema.request import Request, as_whole

MAX_STOPS = 4
MAX_PROMPTS = 128

_Text = Annotated[str, Field(max_length=1_000_000)]
_StopText = Annotated[str, Field(min_length=1, max_length=1000)]
# The bounds stand next to the type, or the schema would not name them in its own words.
_TokenId = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(as_whole)]
_TokenIds = Annotated[list[_TokenId], Field(min_length=1)]


class StreamOptions(Request):
    include_usage: bool | None = Field(
        False, description="A last chunk with `usage` and no choices."
    )
    include_obfuscation: bool | None = Field(False, description="Accepted; nothing is added.")


class _Request(Unsupported):
    """What both kinds of completion take."""

    model: str = Field(
        min_length=1,
        max_length=400,
        description="As listed by `GET /v1/models`; loaded if need be.",
    )
    n: int | None = Field(
        1, ge=1, le=8, description="Answers to each prompt, made one after another."
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: Annotated[
        _StopText | Annotated[list[_StopText], Field(max_length=MAX_STOPS)] | None,
        one_message(f"give a string, or up to {MAX_STOPS} of them, of 1 to 1000 characters"),
    ] = None
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    repetition_penalty: float | None = Field(
        1.0, ge=0.01, le=10, description="Not OpenAI's; as `POST /api/model/generate` has it."
    )

    @property
    def num_choices(self) -> int:
        """Of each prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


_COMPLETION = {"model": "base/tiny", "prompt": "The mill turns", "max_tokens": 16}


class CompletionRequest(
    UnsupportedOfCompletions, _Request, json_schema_extra={"examples": [_COMPLETION]}
):
    """`POST /v1/completions`. Prompts are text or token ids, one or several."""

    prompt: Annotated[
        _Text
        | Annotated[list[_Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | _TokenIds
        | Annotated[list[_TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)],
        one_message(
            "give a string, a list of strings, a list of token ids or a list of such lists;"
            f" at most {MAX_PROMPTS} prompts"
        ),
    ]
    echo: bool | None = Field(False, description="Begin with the prompt, scored with `logprobs`.")
    max_tokens: int | None = Field(
        16, ge=0, le=1_000_000, description="0 only with `echo`: nothing but the prompt."
    )
    logprobs: int | None = Field(None, ge=0, le=20, description="Likeliest tokens at each place.")

    @field_validator("max_tokens")
    @classmethod
    def _check_max_tokens(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value == 0 and not info.data.get("echo"):
            raise ValueError("0 makes sense only with echo")
        return value


class TextPart(Request):
    type: Literal["text"]
    text: _Text


class ChatMessage(UnsupportedOfMessages):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        _Text | Annotated[list[TextPart], Field(min_length=1, max_length=1000)] | None,
        one_message('give a string, or a list of {"type": "text", "text": ...}'),
    ] = Field(None, description="Null is an empty text, and only the assistant's may be null.")

    def asked(self) -> dict[str, Any]:
        return super().asked() | {"content": self.content}

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError("content: only the assistant's may be null")
        return self

    @property
    def text(self) -> str:
        content = self.content or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)


_CHAT = {"model": "base/tiny", "messages": [{"role": "user", "content": "What is the mill for?"}]}


class ChatCompletionRequest(UnsupportedOfChats, _Request, json_schema_extra={"examples": [_CHAT]}):
    """`POST /v1/chat/completions`. The last message is the user's."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_tokens: int | None = Field(
        None, ge=1, le=1_000_000, description="Default: to the end of the context."
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=1_000_000, description="The newer name of `max_tokens`; it has precedence."
    )
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Only with `logprobs`.")

    def asked(self) -> dict[str, Any]:
        return super().asked() | {"messages": [message.asked() for message in self.messages]}

    @field_validator("messages")
    @classmethod
    def _check_messages(cls, value: list[ChatMessage]) -> list[ChatMessage]:
        if value[-1].role != "user":
            raise ValueError("the last one must be the user's")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _check_top_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("only together with logprobs: true")
        return value


class Usage(BaseModel):
    """Token counts. The token that ends an answer by itself is not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


OpenAIFinish = Literal["stop", "length", "cancelled"]
_Choice = TypeVar("_Choice", bound=BaseModel)


class _Reply(BaseModel, Generic[_Choice]):
    """What both kinds of completion answer with, whole and in chunks."""

    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    """Lists of equal length. The first token of an echoed prompt has no score."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: OpenAIFinish | None = None


class Completion(_Reply[CompletionChoice]):
    """Whole, or one chunk of a stream."""

    object: Literal["text_completion"] = "text_completion"


class TopLogprob(BaseModel):
    """`bytes` is null for a token that holds part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: OpenAIFinish


class ChatCompletion(_Reply[ChatChoice]):
    object: Literal["chat.completion"] = "chat.completion"
    usage: Usage


class Delta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str


class ChatChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: OpenAIFinish | None = None


class ChatChunk(_Reply[ChatChunkChoice]):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time in seconds.")
    owned_by: str = "forgellm"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class OpenAIError(BaseModel):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = None
    code: str | None = None


class OpenAIErrorReply(BaseModel):
    """How every failure below `/v1` leaves."""

    error: OpenAIError
