"""Who gets through the guard, tried on a small application that counts what reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from forgellm.guard import TOKEN_COOKIE, Guard, GuardSettings

TOKEN = "a-token-of-enough-length"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
reached: list[str] = []


async def endpoint(request: Request) -> Response:
    reached.append(request.method)
    return PlainTextResponse(str(len(await request.body())))


async def socket(websocket: WebSocket) -> None:
    reached.append("websocket")
    await websocket.accept()
    await websocket.close()


def client(
    settings: GuardSettings | None = None,
    peer: str = "127.0.0.1",
    url: str = "http://localhost:5002",
) -> TestClient:
    app = Starlette(
        routes=[Route("/{path:path}", endpoint, methods=METHODS), WebSocketRoute("/ws", socket)]
    )
    guard = Guard(app, settings or GuardSettings())
    return TestClient(guard, base_url=url, client=(peer, 40000), follow_redirects=False)


@pytest.fixture(autouse=True)
def nothing_reached() -> Iterator[None]:
    reached.clear()
    yield


def refused(reply: Any, status: int, code: str) -> bool:
    envelope = reply.json()
    keys = {"success", "error", "error_code", "details", "suggestion"}
    assert set(envelope) == keys and envelope["success"] is False
    assert (reply.status_code, envelope["error_code"]) == (status, code)
    return not reached


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:5002", "127.0.0.1:5002", "127.9.9.9", "[::1]:5002"]
)
def test_names_of_this_machine_are_answered(host: str) -> None:
    assert client().get("/x", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "localhost.", "127.1", "0.0.0.0:5002", "localhost@evil",
     "[::ffff:8.8.8.8]", "127.0.0.1.nip.io", "localhost:5002:1", "", "local host", "me.local"],
)  # fmt: skip
def test_other_host_names_are_refused(host: str) -> None:
    assert refused(client().get("/x", headers={"host": host}), 403, "HOST_NOT_ALLOWED")


def test_two_host_headers_are_refused() -> None:
    headers = [("host", "localhost"), ("host", "localhost")]
    assert refused(client().get("/x", headers=headers), 403, "HOST_NOT_ALLOWED")


def test_configured_host_is_answered() -> None:
    settings = GuardSettings(allowed_hosts=frozenset({"box.lan"}))
    assert client(settings).get("/x", headers={"host": "box.lan:5002"}).status_code == 200


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost.evil.example:5002", "http://localhost:5003",
     "https://localhost:5002", "http://localhost", "file://", "http://localhost:5002.evil", "x"],
)  # fmt: skip
def test_other_origins_are_refused(method: str, origin: str) -> None:
    reply = client().request(method, "/x", headers={"origin": origin})
    if method == "HEAD":
        assert reply.status_code == 403 and not reached
    else:
        assert refused(reply, 403, "CROSS_ORIGIN")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://localhost:5002"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ],
)
def test_own_pages_and_tools_get_through(method: str, headers: dict[str, str]) -> None:
    reply = client().request(method, "/x", headers=headers)
    assert reply.status_code == 200 and reached == [method]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "ANYTHING"])
@pytest.mark.parametrize("site", ["cross-site", "same-site", "invented"])
def test_unsafe_methods_from_other_sites_are_refused(method: str, site: str) -> None:
    headers = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert refused(client().request(method, "/x", headers=headers), 403, "CROSS_ORIGIN")


def test_other_sites_may_link_here_but_not_embed() -> None:
    link = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    assert client().get("/x", headers=link).status_code == 200
    reached.clear()
    for change in ({"sec-fetch-mode": "no-cors"}, {"sec-fetch-dest": "iframe"}):
        assert refused(client().get("/x", headers=link | change), 403, "CROSS_ORIGIN")


def test_no_cors_header_leaves_without_an_allowed_origin() -> None:
    replies = [
        client().get("/x"),
        client().get("/x", headers={"origin": "http://evil.example"}),
        client().options("/x", headers={"origin": "http://evil.example"}),
        client().get("/x", headers={"host": "evil.example"}),
    ]
    assert not [name for reply in replies for name in reply.headers if name.startswith("access-")]


def test_allowed_origin_gets_cors_headers_for_itself_alone() -> None:
    own = "https://notes.example"
    settings = GuardSettings(allowed_origins=frozenset({own}))
    preflight = client(settings).options("/x", headers={"origin": own})
    assert preflight.status_code == 204 and not reached
    headers = {"origin": own, "sec-fetch-site": "cross-site"}
    reply = client(settings).post("/x", headers=headers)
    assert reply.status_code == 200 and reached == ["POST"]
    for message in (preflight, reply):
        assert message.headers["access-control-allow-origin"] == own
        assert "access-control-allow-credentials" not in message.headers
    reached.clear()
    other = client(settings).post("/x", headers={"origin": own + ".evil.example"})
    assert (
        refused(other, 403, "CROSS_ORIGIN") and "access-control-allow-origin" not in other.headers
    )


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
     {"sec-fetch-site": "same-site"}, {"host": "evil.example"}],
)  # fmt: skip
def test_websocket_from_another_site_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(WebSocketDisconnect), client().websocket_connect("/ws", headers=headers):
        pass
    assert not reached


def test_websocket_of_the_own_page_is_accepted() -> None:
    headers = {"origin": "http://localhost:5002", "host": "localhost:5002"}
    with client().websocket_connect("/ws", headers=headers):
        pass
    assert reached == ["websocket"]


@pytest.mark.parametrize("peer", ["192.168.1.7", "::ffff:10.0.0.1", "testclient", ""])
def test_other_machines_need_the_token(peer: str) -> None:
    with_token = GuardSettings(token=TOKEN)
    for settings in (GuardSettings(), with_token):
        for query in ("", "?token=", "?token=wrong", "?token=%C3%A9"):
            reply = client(settings, peer).get("/x" + query)
            assert refused(reply, 401, "TOKEN_REQUIRED")
        for header in ("Bearer wrong", f"Basic {TOKEN}", "Bearer", ""):
            reply = client(settings, peer).get("/x", headers={"authorization": header})
            assert refused(reply, 401, "TOKEN_REQUIRED")
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert client(with_token, peer).post("/x", headers=headers).status_code == 200


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
def test_a_proxied_client_is_not_taken_for_a_local_one(header: str) -> None:
    assert refused(client().get("/x", headers={header: "127.0.0.1"}), 401, "TOKEN_REQUIRED")


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_this_machine_needs_no_token(peer: str) -> None:
    assert client(GuardSettings(token=TOKEN), peer).get("/x").status_code == 200


def test_token_in_the_url_becomes_a_cookie_and_leaves_the_address() -> None:
    browser = client(GuardSettings(token=TOKEN), "192.168.1.7")
    reply = browser.get(f"/page?a=1&token={TOKEN}&b=%26")
    assert reply.status_code == 303 and reply.headers["location"] == "/page?a=1&b=%26"
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and not reached
    assert TOKEN_COOKIE in browser.cookies and browser.get("/page").status_code == 200


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example"])
def test_redirect_after_the_token_stays_on_this_server(path: str) -> None:
    browser = client(GuardSettings(token=TOKEN), "192.168.1.7")
    location = browser.get(f"http://localhost:5002{path}?token={TOKEN}").headers["location"]
    assert location.startswith("/") and location[1:2] not in ("/", "\\")


def test_sizes_are_limited() -> None:
    small = GuardSettings(max_body_bytes=10, max_header_bytes=600, max_url_bytes=50)
    assert client(small).post("/x", content=b"a" * 10).text == "10"
    reached.clear()
    assert refused(client(small).post("/x", content=b"a" * 11), 413, "BODY_TOO_LARGE")
    assert refused(client(small).get("/" + "a" * 50), 414, "URL_TOO_LONG")
    assert refused(client(small).get("/?" + "a" * 50), 414, "URL_TOO_LONG")
    assert refused(client(small).get("/", headers={"x": "a" * 600}), 431, "HEADERS_TOO_LARGE")
    for length in ("-1", "1e9", "²", "9" * 5000):
        reply = client(GuardSettings(max_header_bytes=1 << 20)).post(
            "/x", headers={"content-length": length.encode()}
        )
        assert reply.status_code in (400, 413) and not reached


def test_body_is_counted_while_it_streams() -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(10):
            yield b"a" * 4

    small = GuardSettings(max_body_bytes=10)
    reply = client(small).post("/x", content=endless())
    assert reply.status_code == 413 and reply.json()["error_code"] == "BODY_TOO_LARGE"


def test_every_reply_carries_the_security_headers() -> None:
    for reply in (client().get("/x"), client().get("/x", headers={"host": "evil.example"})):
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"


def test_failures_of_the_application_are_not_swallowed() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")

    broken_client = TestClient(
        Guard(broken, GuardSettings()), base_url="http://localhost", client=("127.0.0.1", 1)
    )
    with pytest.raises(RuntimeError, match="broken"):
        broken_client.get("/")
