"""Conversations as lines of JSON: whole ones, and rows of a dataset to train on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from forgellm.errors import InvalidRequest
from forgellm.paths import iso_utc
from forgellm.schema.conversations import Conversation, ConversationContent, MessagesRow
from forgellm.schema.generation import Message
from forgellm.schema.recipe import name_problems

Format = Literal["conversations", "messages"]


def export_row(conversation: Conversation, format: Format) -> BaseModel | None:
    """The whole conversation, or its active branch as `messages`, up to its last answer.

    None for a branch without an answer: there is nothing to learn from it.
    """
    if format == "conversations":
        return conversation
    branch = [Message(role=turn.role, content=turn.content) for turn in conversation.branch()]
    while branch and branch[-1].role != "assistant":
        branch.pop()
    if not branch:
        return None
    if conversation.system:
        branch.insert(0, Message(role="system", content=conversation.system))
    return MessagesRow.model_validate({"messages": branch, "title": conversation.title})


def read_rows(rows: list[dict[str, Any]]) -> list[tuple[ConversationContent, str, str]]:
    """Each row's conversation, with when it was made and last changed.

    Raises InvalidRequest that names the first wrong row, counted from 1, and its fields.
    """
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(_read_row(row))
        except ValidationError as error:
            problems = name_problems(error.errors(include_url=False))
            text = "; ".join(f"{problem['field']}: {problem['message']}" for problem in problems)
            raise InvalidRequest(
                f"Row {number}: {text}", details={"row": number, "problems": problems}
            ) from None
    return found


def _read_row(row: dict[str, Any]) -> tuple[ConversationContent, str, str]:
    if "revision" in row:  # a whole conversation, as it was exported
        conversation = Conversation.model_validate(row)
        return conversation, conversation.created_at, conversation.updated_at
    now = iso_utc()
    return _chain(MessagesRow.model_validate(row)), now, now


def _chain(row: MessagesRow) -> ConversationContent:
    """One message after the other, without branches."""
    turns = row.messages
    system = turns[0].content if turns[0].role == "system" else ""
    messages = [
        {
            "id": str(number),
            "parent": str(number - 1) if number > 1 else None,
            "role": turn.role,
            "content": turn.content,
        }
        for number, turn in enumerate(turns[bool(system) :], 1)
    ]
    leaf = str(len(messages)) if messages else None
    content = {"title": row.title, "system": system, "messages": messages, "leaf": leaf}
    return ConversationContent.model_validate(content)
