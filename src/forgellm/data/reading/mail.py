"""E-mail: subject and text, a document for each message. Attachments are left out."""

from __future__ import annotations

import mailbox
from collections.abc import Iterator
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path

from forgellm.data.reading.html import text_of_html
from forgellm.data.reading.reader import SkipRow, Unreadable

_PARSER = BytesParser(policy=policy.default)


def read_eml(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    with path.open("rb") as file:
        text = _text(_PARSER.parse(file))
    if text is None:
        raise Unreadable("no text in it")
    yield None, text


def read_mbox(path: Path, skip: SkipRow) -> Iterator[tuple[int | None, str]]:
    box = mailbox.mbox(path, create=False)
    try:
        for number, key in enumerate(box.keys(), 1):
            text = _text(_PARSER.parsebytes(box.get_bytes(key)))
            if text is None:
                skip("no text in it", number)
            else:
                yield number, text
    finally:
        box.close()


def _text(message: EmailMessage) -> str | None:
    """None where a message has neither a text nor HTML."""
    body = message.get_body(preferencelist=("plain", "html"))
    if body is None:
        return None
    try:
        content = body.get_content()
    except (LookupError, ValueError):  # an encoding that does not exist
        raw = body.get_payload(decode=True)
        content = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else ""
    if not isinstance(content, str):
        return None
    if body.get_content_subtype() == "html":
        content = text_of_html(content)
    content = content.replace("\r\n", "\n").strip("\n")
    subject = str(message.get("subject") or "").strip()
    return f"{subject}\n\n{content}" if subject else content or None
