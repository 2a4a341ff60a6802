"""E-mail: subject and text, a document for each message. Attachments are left out."""

from __future__ import annotations

import mailbox
import re
from collections.abc import Iterator
from email import policy
from email.message import MIMEPart
from email.parser import BytesParser
from pathlib import Path

from forgellm.data.reading.html import decode_html, text_of_html
from forgellm.data.reading.reader import SkipRow, Unreadable
from forgellm.data.reading.web_encodings import decode_label

_PARSER = BytesParser(policy=policy.default)
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)


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
            # Lines that begin like a message are quoted in such a file.
            text = _text(_PARSER.parsebytes(_QUOTED_FROM.sub(rb"\1", box.get_bytes(key))))
            if text is None:
                skip("no text in it", number)
            else:
                yield number, text
    finally:
        box.close()


def _text(message: MIMEPart) -> str | None:
    """None where a message has neither a text nor HTML."""
    parts = [part.strip("\n") for part in _parts(message)]
    content = "\n\n".join(part for part in parts if part.strip())
    if not parts:
        return None
    subject = str(message.get("subject") or "").strip()
    return f"{subject}\n\n{content}" if subject else content or None


def _parts(message: MIMEPart) -> Iterator[str]:
    """What a reader of the message is shown: of several forms of a text the plain one."""
    kind = message.get_content_type()
    if message.is_attachment():
        return
    if kind == "message/rfc822":
        for inner in message.iter_parts():
            yield _text(inner) or ""
    elif kind == "multipart/alternative":
        yield from _best([list(_parts(part)) for part in _by_preference(message)])
    elif kind == "multipart/related":
        yield from (text for part in list(message.iter_parts())[:1] for text in _parts(part))
    elif message.is_multipart():
        yield from (text for part in message.iter_parts() for text in _parts(part))
    elif kind in ("text/plain", "text/html"):
        yield _content(message, is_html=kind == "text/html")


def _by_preference(message: MIMEPart) -> list[MIMEPart]:
    return sorted(message.iter_parts(), key=lambda part: part.get_content_type() != "text/plain")


def _best(forms: list[list[str]]) -> list[str]:
    filled = [texts for texts in forms if any(text.strip() for text in texts)]
    return (filled or forms or [[]])[0]


def _content(part: MIMEPart, is_html: bool) -> str:
    raw = part.get_payload(decode=True)
    if not isinstance(raw, bytes):
        return ""
    label = part.get_content_charset()
    if is_html:
        return text_of_html(_decoded(raw, label) if label else _decoded_page(raw))
    text = _decoded(raw, label or "utf-8").replace("\r\n", "\n")
    return _unwrapped(text) if part.get_param("format", "") == "flowed" else text


def _decoded(raw: bytes, label: str) -> str:
    """What the message says of its encoding is often not true."""
    for encoding in (label, "utf-8"):
        try:
            return decode_label(raw, "utf-8" if encoding == "us-ascii" else encoding)
        except Unreadable:
            continue
    return decode_label(raw, "windows-1252")


def _decoded_page(raw: bytes) -> str:
    try:
        return decode_html(raw)
    except Unreadable:
        return decode_label(raw, "windows-1252")


def _unwrapped(text: str) -> str:
    """Lines that a space ends go on in the next one (RFC 3676)."""
    return re.sub(r"(?m)(?<!^--) \n(?=[^>\n])", " ", text)
