"""Documents that are zip archives of XML, opened with care: DOCX, ODT, EPUB."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forgellm.data.reading.reader import Unreadable

MAX_PART_BYTES = 200_000_000
MAX_PARTS = 20_000
# Office's own container: of documents with a password, and of formats before these.
_COMPOUND_FILE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


@contextmanager
def opened(path: Path, kind: str) -> Iterator[zipfile.ZipFile]:
    """Raises Unreadable for what is no archive, is encrypted, or would grow beyond all bounds."""
    with path.open("rb") as file:
        if file.read(len(_COMPOUND_FILE)) == _COMPOUND_FILE:
            raise Unreadable(f"encrypted, or of a format older than {kind}")
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if len(parts) > MAX_PARTS:
                raise Unreadable(f"more than {MAX_PARTS} parts")
            if any(part.file_size > MAX_PART_BYTES for part in parts):
                raise Unreadable(f"a part of more than {MAX_PART_BYTES // 1_000_000} MB")
            if any(part.flag_bits & 1 for part in parts):
                raise Unreadable("encrypted")
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise Unreadable(f"broken {kind}: {error}"[:200]) from None


def part_of(archive: zipfile.ZipFile, name: str, absent: bytes | None = None) -> bytes:
    """A part, however much its header says it holds. Raises Unreadable."""
    try:
        with archive.open(name) as part:
            content = part.read(MAX_PART_BYTES + 1)
    except KeyError:
        if absent is not None:
            return absent
        raise Unreadable(f"it lacks {posixpath.basename(name) or 'a part'}"[:100]) from None
    if len(content) > MAX_PART_BYTES:
        raise Unreadable(f"a part of more than {MAX_PART_BYTES // 1_000_000} MB")
    return content


def xml_of(content: bytes) -> Any:
    """The root element; entities, which can grow without bound, are refused. Raises Unreadable."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        return fromstring(content)
    except DefusedXmlException:
        raise Unreadable("XML with entities") from None
    except ParseError as error:
        raise Unreadable(f"broken XML: {error}"[:200]) from None
