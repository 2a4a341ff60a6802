"""The address of another server and its key, as the user of this machine gave them."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from forgellm.errors import InvalidRequest


def plain_address(url: str, what: str) -> str:
    """`url` without a slash at its end.

    Raises InvalidRequest for anything but scheme, host, port and path of http or https.
    """
    refused = InvalidRequest(
        f"{what} must be an address that begins with http:// or https://",
        suggestion="Such as http://127.0.0.1:5001/v1; a key belongs into the environment.",
    )
    try:
        parts = urlsplit(url)
        has_port = parts.port != 0  # raises where it is no port
    except ValueError:
        raise refused from None
    is_plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    is_plain = is_plain and not (parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain or not has_port:
        raise refused
    return url.rstrip("/")


def key_in(variable: str) -> str | None:
    """From the environment alone, so that it stands in no history of commands and in no file.

    Raises InvalidRequest if it cannot be part of a header.
    """
    key = os.environ.get(variable)
    if key and not (key.isascii() and key.isprintable()):
        raise InvalidRequest(f"{variable} holds characters that no key has")
    return key or None
