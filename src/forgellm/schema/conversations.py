"""Conversations as they are kept and sent: a tree of messages, so that edits make branches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from forgellm.schema.answers import FinishReason
from forgellm.schema.generation import Message, Sampling
from forgellm.schema.reply import Item, Reply
from forgellm.schema.request import Request

_MessageId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_Moment = Annotated[
    str,
    Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z$"),
]
_Count = Annotated[int, Field(ge=0, lt=2**53)]


class Pane(Request):
    """A model that answers, as it is loaded."""

    model_name: str = Field(min_length=1, max_length=400)
    adapter_path: str | None = Field(default=None, max_length=1000)


class ChatSettings(Sampling):
    """What is sent with each prompt."""

    is_base_model: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


class Figures(Request):
    """Of an answer, as its `done` had them."""

    tokens_generated: _Count | None = None
    tokens_per_second: float | None = Field(default=None, ge=0)
    generation_time_seconds: float | None = Field(default=None, ge=0)
    finish_reason: FinishReason | None = None
    prompt_tokens: _Count | None = None
    context_length: _Count | None = None


class KeptLikely(Request):
    token: str = Field(max_length=1000)
    log_prob: float


class KeptScore(KeptLikely):
    top: list[KeptLikely] = Field(default_factory=list, max_length=20)


class ChatMessage(Request):
    """`parent` is the message it answers or follows, and stands before it; null for the first."""

    id: _MessageId
    parent: _MessageId | None = None
    role: Literal["user", "assistant", "system"]
    content: str = Field(max_length=1_000_000)
    pane: int | None = Field(
        default=None, ge=0, lt=16, description="Which of `panes` answered, from 0."
    )
    model_name: str | None = Field(default=None, max_length=400)
    adapter_path: str | None = Field(default=None, max_length=1000)
    created_at: _Moment | None = None
    figures: Figures | None = None
    scores: list[KeptScore] | None = Field(default=None, max_length=100_000)


_EXAMPLE: dict[str, Any] = {
    "title": "The mill",
    "panes": [{"model_name": "SmolLM2-135M-Instruct"}],
    "messages": [
        {"id": "1", "parent": None, "role": "user", "content": "Who lights the lamps?"},
        {"id": "2", "parent": "1", "role": "assistant", "content": "The keeper.", "pane": 0},
    ],
    "leaf": "2",
}


class ConversationContent(Request, json_schema_extra={"examples": [_EXAMPLE]}):
    """What a client says of a conversation. The branch that is shown ends at `leaf`."""

    title: str = Field(
        default="", max_length=200, description="Default: the beginning of the first question."
    )
    system: str = Field(default="", max_length=1_000_000)
    settings: ChatSettings = Field(default_factory=lambda: ChatSettings.model_validate({}))
    panes: list[Pane] = Field(default_factory=list, max_length=16)
    messages: list[ChatMessage] = Field(default_factory=list, max_length=10_000)
    leaf: _MessageId | None = None

    @field_validator("messages")
    @classmethod
    def _is_a_tree(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        seen: set[str] = set()
        for message in messages:
            if message.id in seen:
                raise ValueError("two have the same id")
            if message.parent is not None and message.parent not in seen:
                raise ValueError("a parent must stand before what follows it")
            seen.add(message.id)
        return messages

    @field_validator("leaf")
    @classmethod
    def _is_a_message(cls, leaf: str | None, info: ValidationInfo) -> str | None:
        messages = info.data.get("messages")  # None where they are wrong themselves
        if None not in (leaf, messages) and all(message.id != leaf for message in messages or ()):
            raise ValueError("must be the id of a message")
        return leaf

    def branch(self) -> list[ChatMessage]:
        """The messages from the first one to `leaf`."""
        by_id = {message.id: message for message in self.messages}
        found, at = [], self.leaf
        while at is not None:
            found.append(by_id[at])
            at = by_id[at].parent
        return found[::-1]


class ConversationSave(
    ConversationContent, json_schema_extra={"examples": [_EXAMPLE | {"revision": 1}]}
):
    revision: int = Field(ge=1, lt=2**53, description="The one that this change is based on.")


class Conversation(ConversationContent):
    """As it is kept. The server makes the id, and counts the revisions from 1."""

    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    created_at: _Moment
    updated_at: _Moment
    revision: int = Field(ge=1, lt=2**53)


class MessagesRow(Request):
    """A row of a dataset in OpenAI's shape."""

    messages: list[Message] = Field(min_length=1, max_length=10_000)
    title: str = Field(default="", max_length=200)


_ROW = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}


class ConversationsImport(Request):
    rows: list[dict[str, Any]] = Field(
        min_length=1,
        max_length=10_000,
        examples=[[_ROW]],
        description="As exported in either format; all are taken, or none.",
    )


class ConversationItem(Item):
    id: str
    title: str
    created_at: str
    updated_at: str
    revision: int
    num_messages: int
    panes: list[Pane]


class ConversationsReply(Reply):
    conversations: list[ConversationItem] = Field(description="The last changed first.")
    total: int = Field(description="Conversations that match.")


class ConversationReply(Reply):
    conversation: Conversation


class ConversationSavedReply(Reply):
    id: str
    title: str
    created_at: str
    updated_at: str
    revision: int


class ConversationDeletedReply(Reply):
    message: str
    id: str


class ConversationsImportedReply(Reply):
    imported: list[str] = Field(description="Their new ids, in the order of the rows.")
