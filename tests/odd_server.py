"""A server on a free port of this machine that says what a test tells it to, in raw HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


class OddServer:
    """`say` answers each request; `requests` has what came: path, headers, JSON."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.say: Callable[[Any], None] = lambda handler: json_reply(handler, 200, MODELS)
        self.url = ""


MODELS = {"object": "list", "data": [{"id": "odd", "object": "model", "max_model_len": 64}]}


def json_reply(handler: Any, status: int, content: Any, **headers: str) -> None:
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def stream_reply(handler: Any, *pieces: bytes) -> None:
    """Server-sent events up to the end of the connection."""
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    handler.end_headers()
    for piece in pieces:
        handler.wfile.write(piece)
        handler.wfile.flush()


@contextmanager
def odd_server() -> Iterator[OddServer]:
    odd = OddServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            odd.requests.append((self.path, dict(self.headers), orjson.loads(body or b"null")))
            try:
                if self.path.endswith("/models") and self.command == "GET":
                    json_reply(self, 200, MODELS)
                else:
                    odd.say(self)
            except (BrokenPipeError, ConnectionResetError):
                pass

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    odd.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield odd
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
