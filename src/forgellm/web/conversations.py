"""The conversations of a workspace: a JSON file each, in `.forgellm/conversations/`."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from forgellm.atomic import file_lock, read_json, write_json
from forgellm.errors import Conflict, NotFound, TrainingFailed
from forgellm.paths import Workspace, iso_utc
from forgellm.schema.conversations import (
    Conversation,
    ConversationContent,
    ConversationItem,
    ConversationSave,
)

_log = logging.getLogger(__name__)
_ID = re.compile(r"[0-9a-f]{16}")
_TITLE_LENGTH = 80


class Conversations:
    """Writers, also those of other processes, come one after the other; readers need not wait."""

    def __init__(self, workspace: Workspace) -> None:
        self._folder = workspace.conversations
        # By id: the file's time and size, and what the list shows of it.
        self._items: dict[str, tuple[tuple[int, int], ConversationItem]] = {}

    def find(self, words: Iterable[str] = ()) -> list[ConversationItem]:
        """Those in whose title and messages every word occurs, the last changed first."""
        wanted = [word.casefold() for word in words]
        found = [item for path in self._paths() if (item := self._item(path, wanted))]
        return sorted(found, key=lambda item: (item.updated_at, item.id), reverse=True)

    def all(self) -> Iterator[Conversation]:
        """The last changed first."""
        for item in self.find():
            if (conversation := _read(self._folder / f"{item.id}.json")) is not None:
                yield conversation

    def get(self, conversation_id: str) -> Conversation:
        """Raises NotFound."""
        path = self._path(conversation_id)
        conversation = _read(path)
        if conversation is None:
            raise NotFound(
                "The conversation's file is damaged" if path.exists() else _NONE,
                details={"id": conversation_id},
            )
        return conversation

    def create(self, content: ConversationContent) -> Conversation:
        now = iso_utc()
        return self.add(content, created_at=now, updated_at=now)

    def add(
        self, content: ConversationContent, *, created_at: str, updated_at: str
    ) -> Conversation:
        """Keep it as a new conversation. Raises DiskFull or TrainingFailed."""
        with self._writing():
            conversation = _conversation(
                content,
                id=secrets.token_hex(8),
                created_at=created_at,
                updated_at=updated_at,
                revision=1,
            )
            self._write(conversation)
        return conversation

    def replace(self, conversation_id: str, save: ConversationSave) -> Conversation:
        """Raises NotFound, and Conflict where it was changed since the revision that `save` names."""
        with self._writing():
            old = self.get(conversation_id)
            if save.revision != old.revision:
                raise Conflict(
                    "The conversation was changed meanwhile, perhaps in another tab",
                    suggestion="Get it again, and save your change on top of that.",
                    details={"id": old.id, "revision": old.revision},
                )
            conversation = _conversation(
                save,
                id=old.id,
                created_at=old.created_at,
                updated_at=iso_utc(),
                revision=old.revision + 1,
            )
            self._write(conversation)
        return conversation

    def delete(self, conversation_id: str) -> None:
        """For good. Raises NotFound."""
        with self._writing():
            try:
                self._path(conversation_id).unlink()
            except FileNotFoundError:
                raise NotFound(_NONE, details={"id": conversation_id}) from None

    def _paths(self) -> Iterator[Path]:
        return (path for path in self._folder.glob("*.json") if _ID.fullmatch(path.stem))

    def _path(self, conversation_id: str) -> Path:
        if not _ID.fullmatch(conversation_id):
            raise NotFound(_NONE)
        return self._folder / f"{conversation_id}.json"

    def _item(self, path: Path, words: list[str]) -> ConversationItem | None:
        """What the list shows of a file; None where it cannot be read or lacks one of the words."""
        try:
            stat = path.stat()
        except OSError:  # deleted in this moment
            return None
        version = stat.st_mtime_ns, stat.st_size
        known = self._items.get(path.stem)
        is_known = known is not None and known[0] == version
        if known is not None and is_known and not words:
            return known[1]
        conversation = _read(path)
        if conversation is None or not _has_all(conversation, words):
            return None
        item = ConversationItem(
            num_messages=len(conversation.messages),
            **{name: getattr(conversation, name) for name in _SHOWN},
        )
        self._items[path.stem] = version, item
        return item

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with _storage_named(), file_lock(self._folder / ".lock"):
            yield

    def _write(self, conversation: Conversation) -> None:
        path = self._folder / f"{conversation.id}.json"
        write_json(path, conversation.model_dump(mode="json"))


_NONE = "There is no such conversation"
_SHOWN = ("id", "title", "created_at", "updated_at", "revision", "panes")


def _read(path: Path) -> Conversation | None:
    """None where there is none, or none that can be used."""
    payload = read_json(path)
    if payload is None:
        return None
    try:
        return Conversation.model_validate(payload)
    except ValidationError as error:
        _log.warning("%s is no conversation: %d problems", path.name, error.error_count())
        return None


def _conversation(content: ConversationContent, **made: Any) -> Conversation:
    kept = {name: getattr(content, name) for name in ConversationContent.model_fields}
    return Conversation.model_validate(kept | made | {"title": content.title or _title(content)})


def _title(content: ConversationContent) -> str:
    """The beginning of the first question; empty where there is none."""
    for message in content.messages:
        if message.role == "user" and message.content.strip():
            return message.content.strip().splitlines()[0][:_TITLE_LENGTH]
    return ""


def _has_all(conversation: Conversation, words: list[str]) -> bool:
    if not words:
        return True
    contents = (message.content for message in conversation.messages)
    text = "\n".join((conversation.title, conversation.system, *contents)).casefold()
    return all(word in text for word in words)


@contextmanager
def _storage_named() -> Iterator[None]:
    """A failed write speaks of runs otherwise."""
    try:
        yield
    except TrainingFailed as error:
        error.suggestion = "Free disk space or check its permissions, and save again."
        raise
