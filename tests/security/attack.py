"""Both servers in one event loop, asked by raw ASGI messages: what a client library would not send."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ENVELOPE = {"success", "error", "error_code", "details", "suggestion"}
SECRET = "do-not-echo-4711"
PATIENCE_SECONDS = 60.0
INSIDE = re.compile(r"Traceback|0x[0-9a-f]{8}|/root/|/home/|/usr/|/lib/|site-packages|\w\.py\b")


class Ask(NamedTuple):
    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    chunks: tuple[bytes, ...] = ()
    host: str | None = "localhost:5002"
    query: str = ""


@dataclass
class Answer:
    ask: Ask
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return orjson.loads(self.body)

    def __str__(self) -> str:
        sent = b"".join(self.ask.chunks)[:200]
        place = f"{self.ask.method} {self.ask.path}?{self.ask.query}"
        return f"{place} {self.ask.headers} {sent!r} -> {self.status} {self.body[:400]!r}"


@dataclass
class Server:
    """One of the two applications, and the loop it runs in."""

    app: Any
    loop: asyncio.AbstractEventLoop
    workspace: Path

    @property
    def inner(self) -> Any:
        """The FastAPI application behind the guard, and behind what else is around it."""
        app = self.app
        while not hasattr(app, "openapi"):
            app = next(
                inner
                for name in ("app", "other_asgi_app")
                if (inner := getattr(app, name, None)) is not None
            )
        return app

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = self.inner.openapi()
        return document

    def operations(self, *methods: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Method, path and description of what the OpenAPI document lists."""
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                if not methods or method.upper() in methods:
                    yield method.upper(), path, operation

    def schema(self, operation: dict[str, Any]) -> dict[str, Any]:
        """The JSON schema of an operation's body; empty where it takes none."""
        content = operation.get("requestBody", {}).get("content", {})
        return self.resolve(content.get("application/json", {}).get("schema", {}))

    def resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[-1]
            schema = self.document["components"]["schemas"][name]
        return schema

    def paths(self) -> list[str]:
        """Every route, also those that the OpenAPI document leaves out."""
        found = {*self.document["paths"], *_paths_of(self.inner.routes), "/socket.io/", "/unknown"}
        return sorted(found)

    def ask(self, *asks: Ask) -> list[Answer]:
        work = asyncio.run_coroutine_threadsafe(self._ask_all(asks), self.loop)
        return work.result(10 * PATIENCE_SECONDS)

    async def _ask_all(self, asks: Iterable[Ask]) -> list[Answer]:
        return [await asyncio.wait_for(ask_app(self.app, ask), PATIENCE_SECONDS) for ask in asks]

    def state(self) -> dict[str, str]:
        """What is in the workspace: every name, and a hash of every file."""
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in self.workspace.rglob("*")
        }


def scope_of(ask: Ask, kind: str = "http") -> dict[str, Any]:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in ask.headers]
    if ask.host is not None:
        headers.insert(0, (b"host", ask.host.encode("latin-1")))
    scope: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws" if kind == "websocket" else "http",
        "path": ask.path,
        "raw_path": ask.path.encode("utf-8", "surrogateescape"),
        "query_string": ask.query.encode("utf-8", "surrogateescape"),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 40000),
        "server": ("127.0.0.1", 5002),
        "state": {},
        "extensions": {},
    }
    return scope | ({"subprotocols": []} if kind == "websocket" else {"method": ask.method})


async def ask_app(app: ASGIApp, ask: Ask) -> Answer:
    """The answer of a client that stays until it has all of it. A failure inside is a 500."""
    pieces = list(ask.chunks) or [b""]
    answer = Answer(ask)

    async def receive() -> Message:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in message["headers"]
            }
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")

    try:
        await app(scope_of(ask), receive, send)
    except Exception as error:
        answer.status, answer.body = 500, answer.body or repr(error).encode()
    return answer


async def connect(app: ASGIApp, ask: Ask) -> list[str]:
    """The types of the messages that answer a WebSocket handshake."""
    answers: list[str] = []

    async def receive() -> Message:
        if not answers:
            return {"type": "websocket.connect"}
        return {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Message) -> None:
        answers.append(message["type"])

    await app(scope_of(ask, "websocket"), receive, send)
    return answers


def check_failure(answer: Answer) -> dict[str, Any]:
    """A refusal in the right shape, which says nothing of the inside."""
    assert 400 <= answer.status < 500, answer
    assert answer.headers["content-type"] == "application/json", answer
    check_reveals_nothing(answer)
    found: dict[str, Any] = answer.json()
    is_openai = answer.ask.path.startswith("/v1/") and set(found) == {"error"}
    if is_openai:
        assert set(found["error"]) == {"message", "type", "param", "code"}, answer
        assert found["error"]["message"], answer
    else:
        assert set(found) == ENVELOPE and found["success"] is False and found["error"], answer
    return found


def check_reveals_nothing(answer: Answer) -> None:
    assert not [name for name in answer.headers if name.startswith("access-control-")], answer
    if answer.headers.get("content-type", "").startswith("application/json"):
        assert not INSIDE.search(answer.body.decode()), answer


def fill(path: str, value: str = "absent") -> str:
    """A path template with its parameters filled in."""
    return re.sub(r"\{[^}]+\}", lambda _: value, path)


def _paths_of(routes: Iterable[BaseRoute]) -> Iterator[str]:
    for route in routes:
        if (path := getattr(route, "path", None)) is not None:
            yield path
        included = getattr(route, "original_router", None)
        yield from _paths_of(
            getattr(included, "routes", None) or getattr(route, "routes", None) or ()
        )


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        end = loop.shutdown_default_executor()
        asyncio.run_coroutine_threadsafe(end, loop).result(PATIENCE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def started(app: ASGIApp, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Run the application's own start and end around the block."""
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    is_up, is_down = threading.Event(), threading.Event()

    async def send(message: Message) -> None:
        assert message["type"].endswith("complete"), message
        (is_up if "startup" in message["type"] else is_down).set()

    async def run() -> None:
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        receive: Receive = inbox.get
        sender: Send = send
        await app(scope, receive, sender)

    future = asyncio.run_coroutine_threadsafe(run(), loop)
    loop.call_soon_threadsafe(inbox.put_nowait, {"type": "lifespan.startup"})
    assert is_up.wait(PATIENCE_SECONDS)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(inbox.put_nowait, {"type": "lifespan.shutdown"})
        future.result(PATIENCE_SECONDS)
        assert is_down.is_set()
