"""Names that a page can get to point at this machine: the servers answer to none but the machine's own."""

from __future__ import annotations

import asyncio
import socket

import pytest

from security.attack import Ask, Server, check_failure, connect, fill
from security.conftest import Servers
from serving import served

OWN = ["localhost", "localhost:5002", "LOCALHOST:5002", "LocalHost", "127.0.0.1", "127.0.0.1:5002",
       "127.1.2.3", "[::1]", "[::1]:5002", "[0:0:0:0:0:0:0:1]:5002", "[::ffff:127.0.0.1]"]  # fmt: skip
FOREIGN = [
    "evil.test", "evil.test:5002", "localhost.evil.test", "evil.localhost.test", "localhost.",
    "localhost.localdomain", "sub.localhost", "127.0.0.1.nip.io", "127.1", "127.0.1", "2130706433",
    "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.0.0.01", "127.0.0.1.", "0.0.0.0",
    "0.0.0.0:5002", "0", "::1", "[::]", "[::]:5002", "[::1", "::1]", "[::1%25lo]", "[::ffff:8.8.8.8]",
    "[fe80::1]", "192.168.1.7", "169.254.169.254", "10.0.0.1:5002", "me.local", "me.internal",
    "localhost@evil.test", "evil.test@localhost", "localhost:5002@evil.test", "localhost:", "localhost:x",
    "localhost:-1", "localhost:5002:80", "localhost:999999", "localhost/", "localhost/evil.test",
    "localhost#evil.test", "localhost?", "localhost,evil.test", "localhost evil.test", " localhost",
    "localhost\t", "localhost\\evil", "http://localhost:5002", "localhost%00", "localhost\x00", "",
    "lоcalhost".encode().decode("latin-1"), "ⓛocalhost".encode().decode("latin-1"),
    "１２７.0.0.1".encode().decode("latin-1"), "xn--lcalhost-n8g", "*", "null", "_", "[]", "[]:5002",
]  # fmt: skip


def test_own_names_are_answered(server: Server) -> None:
    for answer in server.ask(*(Ask("GET", "/api/health", host=host) for host in OWN)):
        assert answer.status == 200, (answer.ask.host, answer)


def test_other_names_are_refused_on_every_route(server: Server) -> None:
    assert len(FOREIGN) >= 40
    before = server.state()
    for path in server.paths():
        asks = [
            Ask(method, fill(path), host=host) for host in FOREIGN for method in ("GET", "POST")
        ]
        for answer in server.ask(*asks):
            assert check_failure(answer)["error_code"] == "HOST_NOT_ALLOWED", (
                answer.ask.host,
                answer,
            )
    assert server.state() == before


@pytest.mark.parametrize("others", [("localhost",), ("evil.test",), ("",)])
def test_a_second_host_is_refused(server: Server, others: tuple[str, ...]) -> None:
    headers = tuple(("host", other) for other in others)
    for method in ("GET", "POST", "DELETE"):
        [answer] = server.ask(Ask(method, "/api/health", headers))
        assert check_failure(answer)["error_code"] == "HOST_NOT_ALLOWED"


def test_no_host_is_refused(server: Server) -> None:
    [answer] = server.ask(Ask("GET", "/api/health", host=None))
    assert check_failure(answer)["error_code"] == "HOST_NOT_ALLOWED"


def test_other_headers_do_not_stand_in_for_the_host(server: Server) -> None:
    for name in ("x-forwarded-host", "x-host", "forwarded", "x-original-host", "x-forwarded-for"):
        for host in ("localhost", None):
            [answer] = server.ask(Ask("GET", "/api/health", ((name, "localhost"),), host=host))
            is_proxied = name in ("forwarded", "x-forwarded-for")
            assert answer.status == (403 if host is None else 401 if is_proxied else 200)
        [answer] = server.ask(Ask("GET", "/api/health", ((name, "evil.test"),), host="evil.test"))
        assert answer.status == 403


def test_websocket_handshake_under_another_name_is_refused(server: Server) -> None:
    for path in server.paths():
        for host in FOREIGN:
            # A rebound page is of the same origin as its own host, so only the name tells.
            own_origin = (("origin", f"http://{host}"), ("sec-fetch-site", "same-origin"))
            ask = Ask("GET", fill(path), own_origin, host=host, query="EIO=4&transport=websocket")
            assert asyncio.run(connect(server.app, ask)) == ["websocket.close"], host


def test_rebound_page_that_looks_like_its_own_origin_is_refused(server: Server) -> None:
    headers = (("origin", "http://evil.test:5002"), ("sec-fetch-site", "same-origin"))
    for path in server.paths():
        for answer in server.ask(
            *(Ask(method, fill(path), headers, host="evil.test:5002") for method in ("GET", "POST"))
        ):
            assert check_failure(answer)["error_code"] == "HOST_NOT_ALLOWED"


RAW = [
    b"GET http://evil.test/api/health HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n",
    b"GET /api/health HTTP/1.1\r\nHost: evil.test\r\nHost: localhost\r\n\r\n",
    b"GET /api/health HTTP/1.1\r\nHost : localhost\r\nHost: evil.test\r\n\r\n",
    b"GET /api/health HTTP/1.1\r\n Host: localhost\r\nHost: evil.test\r\n\r\n",
    b"GET /api/health HTTP/1.1\r\nX: a\r\n Host: localhost\r\nHost: evil.test\r\n\r\n",
    b"GET /api/health HTTP/1.1\r\n\r\n",
    b"GET /api/health HTTP/1.0\r\n\r\n",
    b"GET /api/health\r\n\r\n",
    b"GET @localhost/api/health HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    b"GET //localhost/api/health HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    b"POST /api/model/unload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\n{}",
    b"POST /api/model/unload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"POST /api/model/unload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
    b"POST /api/model/unload HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n{}",
    b"POST /api/model/unload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x2\r\n\r\n{}",
    b"CONNECT localhost:5002 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /api/health HTTP/1.1\r\nHost: localhost\x00evil.test\r\n\r\n",
]


def test_malformed_messages_on_the_wire_reach_nothing(servers: Servers) -> None:
    with served(servers.model.app) as client:
        for message in RAW:
            with socket.create_connection(
                (client.base_url.host, client.base_url.port or 0)
            ) as wire:
                wire.sendall(message)
                wire.shutdown(socket.SHUT_WR)
                reply = b"".join(iter(lambda: wire.recv(65536), b""))
            assert not reply.startswith((b"HTTP/1.1 2", b"HTTP/1.1 5")), (message, reply)
            assert b"Traceback" not in reply and b"version" not in reply
        assert client.get("/api/health").status_code == 200
