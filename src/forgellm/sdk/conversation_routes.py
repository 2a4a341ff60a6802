"""The routes around the conversations that the server keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

from forgellm.sdk.replies import Reply
from forgellm.sdk.transport import Transport

_ROUTE = "/api/conversations"


class ConversationRoutes(Transport):
    """A conversation is a dict with `title`, `system`, `settings`, `panes`, `messages` and `leaf`."""

    def list_conversations(
        self, query: str | None = None, *, limit: int | None = None, offset: int | None = None
    ) -> Reply:
        """Those with every word of `query`, the last changed first; in `total` how many match."""
        return self._get(_ROUTE, q=query, limit=limit, offset=offset)

    def create_conversation(self, conversation: Mapping[str, Any]) -> Reply:
        """The reply has its `id` and `revision`."""
        return self._post(_ROUTE, dict(conversation))

    def get_conversation(self, conversation_id: str) -> Reply:
        return self._get(_place(conversation_id))

    def save_conversation(self, conversation_id: str, conversation: Mapping[str, Any]) -> Reply:
        """Put it in the place of the `revision` that it has; a conflict where that has changed."""
        return self._put(_place(conversation_id), dict(conversation))

    def delete_conversation(self, conversation_id: str) -> Reply:
        return self._delete(_place(conversation_id))

    def export_conversations(
        self, format: Literal["conversations", "messages"] = "conversations"
    ) -> Reply:
        """The lines of the export as `rows`; `messages` are rows to train on."""
        return self._get_rows(f"{_ROUTE}/export", format=format)

    def import_conversations(self, rows: Sequence[Mapping[str, Any]]) -> Reply:
        """`rows` as exported in either format; the reply has their new ids."""
        return self._post(f"{_ROUTE}/import", {"rows": list(rows)})


def _place(conversation_id: str) -> str:
    return f"{_ROUTE}/{quote(conversation_id, safe='')}"
