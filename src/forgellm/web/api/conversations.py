"""Conversations of the chat: kept, found, brought and taken away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query
from starlette.responses import Response, StreamingResponse

from forgellm.envelope import JsonRoute
from forgellm.paths import Workspace
from forgellm.schema.answers import inline_schema
from forgellm.schema.conversations import (
    Conversation,
    ConversationContent,
    ConversationDeletedReply,
    ConversationReply,
    ConversationSave,
    ConversationSavedReply,
    ConversationsImport,
    ConversationsImportedReply,
    ConversationsReply,
    MessagesRow,
)
from forgellm.web.conversation_rows import Format, export_row, read_rows
from forgellm.web.conversations import Conversations

ConversationId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$", description="As it is listed.")]

_NDJSON = "application/x-ndjson"
_ROW = {"anyOf": [inline_schema(Conversation), inline_schema(MessagesRow)]}
_EXPORT: dict[int | str, dict[str, Any]] = {
    200: {"description": "One a line", "content": {_NDJSON: {"itemSchema": _ROW}}}
}


def make_router(workspace: Workspace) -> APIRouter:
    router = APIRouter(prefix="/api/conversations", route_class=JsonRoute)
    conversations = Conversations(workspace)
    _add_exchange(router, conversations)

    @router.get("")
    def list_conversations(
        q: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0, lt=2**53)] = 0,
    ) -> ConversationsReply:
        """Those with every word of `q` in title or messages, the last changed first."""
        found = conversations.find(q.split())
        return ConversationsReply(conversations=found[offset : offset + limit], total=len(found))

    @router.post("")
    def create(body: ConversationContent) -> ConversationSavedReply:
        """Keep a new conversation."""
        return _saved(conversations.create(body))

    @router.get("/{conversation_id}")
    def get(conversation_id: ConversationId) -> ConversationReply:
        """A whole conversation."""
        return ConversationReply(conversation=conversations.get(conversation_id))

    @router.put("/{conversation_id}")
    def save(conversation_id: ConversationId, body: ConversationSave) -> ConversationSavedReply:
        """Put this in its place, if it is still of the `revision` that the change is based on."""
        return _saved(conversations.replace(conversation_id, body))

    @router.delete("/{conversation_id}")
    def delete(conversation_id: ConversationId) -> ConversationDeletedReply:
        """Delete it for good."""
        conversations.delete(conversation_id)
        return ConversationDeletedReply(message="Conversation deleted", id=conversation_id)

    return router


def _add_exchange(router: APIRouter, conversations: Conversations) -> None:
    @router.get("/export", response_class=StreamingResponse, responses=_EXPORT)
    def export(format: Format = "conversations") -> Response:
        """All of them, one a line; as `messages`, the active branches as a dataset to train on."""
        return StreamingResponse(
            _lines(conversations, format),
            media_type=_NDJSON,
            headers={"content-disposition": f'attachment; filename="{format}.jsonl"'},
        )

    @router.post("/import")
    def bring(body: ConversationsImport) -> ConversationsImportedReply:
        """Keep what was exported, or rows with `messages`, as new conversations."""
        kept = [
            conversations.add(content, created_at=created, updated_at=updated)
            for content, created, updated in read_rows(body.rows)
        ]
        return ConversationsImportedReply(imported=[conversation.id for conversation in kept])


def _lines(conversations: Conversations, format: Format) -> Iterator[bytes]:
    for conversation in conversations.all():
        if (row := export_row(conversation, format)) is not None:
            yield orjson.dumps(row.model_dump(mode="json"), option=orjson.OPT_APPEND_NEWLINE)


def _saved(conversation: Conversation) -> ConversationSavedReply:
    return ConversationSavedReply(
        **{
            name: getattr(conversation, name)
            for name in ("id", "title", "created_at", "updated_at", "revision")
        }
    )
