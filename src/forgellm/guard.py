"""The outermost layer of both servers: who may send what, decided before anything else runs.

A server on this machine is within reach of every page in the user's browser. The guard lets
through the user's own tools and pages, and refuses other sites, other hosts, and what is too large.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forgellm.envelope import http_error_reply

TOKEN_COOKIE = "forgellm_token"
Origin = tuple[str, str, int]

_UPLOAD = re.compile(r"/api/datasets/[^/]+/files/[^/]+")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}
_HTTP_SCHEMES = {"ws": "http", "wss": "https"}
_SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
        " connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class GuardSettings:
    """What the user of the machine allows beyond the loopback.

    Attributes:
        allowed_hosts: names, besides localhost and loopback addresses, this server answers to.
        allowed_origins: origins such as `https://notes.example:8443` whose pages may call it.
        token: what clients on other machines must show; without one they are refused.
    """

    allowed_hosts: frozenset[str] = frozenset()
    allowed_origins: frozenset[str] = frozenset()
    token: str | None = None
    max_body_bytes: int = 1 << 20
    max_upload_bytes: int = 4 << 30
    max_header_bytes: int = 16 << 10
    max_url_bytes: int = 8 << 10


class Guard:
    """Pure ASGI, around the whole application, for HTTP and WebSocket alike."""

    def __init__(self, app: ASGIApp, settings: GuardSettings) -> None:
        self.app = app
        self._settings = settings
        self._origins = {parse_origin(origin) for origin in settings.allowed_origins} - {None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        send = self._with_reply_headers(headers, send)
        reply = self._reply_instead(scope, headers)
        if reply is None:
            await self._pass_on(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await reply(scope, receive, send)

    def _reply_instead(self, scope: Scope, headers: Headers) -> Response | None:
        """The guard's own answer, or None for what may pass."""
        checks = (self._check_sizes, self._check_host, self._check_origin, self._check_token)
        for check in checks:
            if (reply := check(scope, headers)) is not None:
                return reply
        if scope.get("method") == "OPTIONS" and self._is_allowed_origin(headers):
            return Response(
                status_code=204,
                headers={
                    "access-control-allow-methods": "GET, POST, PUT, DELETE",
                    "access-control-allow-headers": "content-type, authorization",
                },
            )
        return None

    def _check_sizes(self, scope: Scope, headers: Headers) -> Response | None:
        limits = self._settings
        if (
            sum(len(name) + len(value) for name, value in scope["headers"])
            > limits.max_header_bytes
        ):
            return _refusal(431, "HEADERS_TOO_LARGE", "The headers are too large")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > limits.max_url_bytes:
            return _refusal(414, "URL_TOO_LONG", "The URL is too long")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return _refusal(400, "INVALID_REQUEST", "The Content-Length is not a number")
        most = _max_body_bytes(scope, limits)
        if len(length) > 18 or int(length) > most:
            return _body_too_large(most)
        return None

    def _check_host(self, scope: Scope, headers: Headers) -> Response | None:
        """Only names of this machine: a page whose own name was rebound to it sends another."""
        hosts = headers.getlist("host")
        match = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        name = match[1].strip("[]") if match else ""
        if name and (name in self._settings.allowed_hosts or name == "localhost"):
            return None
        if name and _is_loopback(name):
            return None
        return _refusal(
            403,
            "HOST_NOT_ALLOWED",
            "This server does not answer to that host name",
            "Use localhost, or start the server with --allow-host NAME.",
        )

    def _check_origin(self, scope: Scope, headers: Headers) -> Response | None:
        """Pages of other sites may link here, and nothing else."""
        origins = {parse_origin(origin) for origin in headers.getlist("origin")}
        is_foreign = bool(origins - {_own_origin(scope, headers)} - self._origins)
        site = headers.get("sec-fetch-site", "none")
        is_safe = scope["type"] == "http" and scope["method"] in _SAFE_METHODS
        is_navigation = (
            headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        may_read = is_safe and is_navigation
        if not is_foreign:
            if site in ("same-origin", "none") or may_read or self._is_allowed_origin(headers):
                return None
        return _refusal(
            403,
            "CROSS_ORIGIN",
            "Pages of other sites may not use this server",
            "Start the server with --allow-origin ORIGIN if this page is yours.",
        )

    def _check_token(self, scope: Scope, headers: Headers) -> Response | None:
        """Loopback clients need none; others show it in a header, a cookie, or once in the URL."""
        peer = (scope.get("client") or ("",))[0]
        is_forwarded = "x-forwarded-for" in headers or "forwarded" in headers
        if _is_loopback(peer) and not is_forwarded:
            return None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(bearer.strip()):
            return None
        if self._is_token(_cookie(headers, TOKEN_COOKIE)):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope.get("method") == "GET" and self._is_token(dict(query).get("token", "")):
            return self._keep_token(scope["path"], [pair for pair in query if pair[0] != "token"])
        reply = _refusal(
            401,
            "TOKEN_REQUIRED",
            "Clients on other machines must show this server's token",
            "Open the address that was printed when the server started.",
        )
        reply.headers["www-authenticate"] = "Bearer"
        return reply

    def _keep_token(self, path: str, query: list[tuple[str, str]]) -> Response:
        """Move the token from the address bar into a cookie that scripts cannot read."""
        # One leading slash: two would name another host.
        target = "/" + quote(path.lstrip("/")) + ("?" + urlencode(query) if query else "")
        reply = RedirectResponse(target, status_code=303)
        token = self._settings.token or ""
        reply.set_cookie(TOKEN_COOKIE, token, httponly=True, samesite="strict")
        return reply

    def _is_token(self, given: str) -> bool:
        token = self._settings.token
        return token is not None and hmac.compare_digest(given.encode(), token.encode())

    def _is_allowed_origin(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        return origin is not None and parse_origin(origin) in self._origins

    def _with_reply_headers(self, headers: Headers, send: Send) -> Send:
        added = dict(_SECURITY_HEADERS)
        if self._is_allowed_origin(headers):
            added["access-control-allow-origin"] = headers["origin"]
        if self._origins:
            added["vary"] = "Origin"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                reply_headers = MutableHeaders(scope=message)
                for name, value in added.items():
                    reply_headers.setdefault(name, value)
            await send(message)

        return send_with_headers

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, counting the body as it arrives."""
        num_bytes = 0
        is_too_large = False
        most = _max_body_bytes(scope, self._settings)

        async def counted_receive() -> Message:
            nonlocal num_bytes, is_too_large
            message = await receive()
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
            if num_bytes > most:
                is_too_large = True
                raise _BodyTooLarge
            return message

        async def send_unless_too_large(message: Message) -> None:
            # The application answers the broken read in its own way; the guard's answer replaces it.
            if not is_too_large:
                await send(_without_cors(message))

        try:
            await self.app(scope, counted_receive, send_unless_too_large)
        except Exception:
            if not is_too_large:
                raise
        if is_too_large:
            await _body_too_large(most)(scope, receive, send)


class _BodyTooLarge(Exception):
    pass


def _without_cors(message: Message) -> Message:
    """Which other sites may read a reply is said by the guard alone, not by what is behind it."""
    if message["type"] != "http.response.start":
        return message
    headers = message.get("headers", ())
    kept = [pair for pair in headers if not pair[0].lower().startswith(b"access-control-")]
    return {**message, "headers": kept}


def _refusal(status: int, code: str, message: str, suggestion: str = "") -> Response:
    return http_error_reply(status, code, message, suggestion=suggestion)


def _max_body_bytes(scope: Scope, limits: GuardSettings) -> int:
    """Files of datasets may be large; they go to the disk piece by piece."""
    is_upload = scope.get("method") == "PUT" and _UPLOAD.fullmatch(scope["path"])
    return limits.max_upload_bytes if is_upload else limits.max_body_bytes


def _body_too_large(most: int) -> Response:
    return _refusal(413, "BODY_TOO_LARGE", f"The body is larger than {most} bytes")


def _is_loopback(name: str) -> bool:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def parse_origin(text: str) -> Origin | None:
    """Scheme, host and port, to be compared as a whole; None for `null` and what is no origin."""
    scheme, separator, rest = text.lower().partition("://")
    match = _HOST.fullmatch(rest)
    if not separator or scheme not in _PORTS or match is None:
        return None
    return scheme, match[1], int(match[2] or _PORTS[scheme])


def _own_origin(scope: Scope, headers: Headers) -> Origin | None:
    scheme = _HTTP_SCHEMES.get(scope["scheme"], scope["scheme"])
    return parse_origin(f"{scheme}://{headers.get('host', '')}")


def _cookie(headers: Headers, name: str) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""
