"""Each route of the web server has a method in both clients, and each method a route."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from forgellm import ForgeLLMClient, errors
from forgellm.guard import Guard, GuardSettings
from forgellm.paths import Workspace
from forgellm.sdk.replies import error_of
from forgellm.web.app import create_app
from serving import served

STATIC = Path(__file__).parents[2] / "src" / "forgellm" / "web" / "static"
NODE = shutil.which("node")
NOWHERE = "http://127.0.0.1:1"

# The proxy describes these two for all of `/api/model/*`; the model server has the real ones.
PROXIED = {
    ("POST", "/api/model/load"), ("GET", "/api/model/status"), ("POST", "/api/model/generate"),
    ("POST", "/api/model/unload"), ("POST", "/api/model/cancel"),
}  # fmt: skip

# What a method needs to be called at all.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "startTraining": ({},),
    "startChain": ([],),
    "estimate": ({},),
    "publishCheckpoint": ("x",),
    "combineAdapters": (["x", "y"], "z"),
    "loadModel": ("x",),
    "generateText": ("x",),
    "compareRuns": (["x"],),
    "renameRun": ("x", "y"),
    "evaluate": ("x",),
    "makeQuestions": ("x", "y"),
    "getTrainingStatus": (),
    "createConversation": ({},),
    "saveConversation": ("x", {}),
    "importConversations": ([],),
    "exportConversations": (),
}
# Made of the others.
COMPOSED = {"trainingEvents", "streamText"}


class Recorder:
    """Notes the requests that reach an application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests: set[tuple[str, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.requests.add((scope["method"], scope["path"]))
        await self._app(scope, receive, send)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Recorder, httpx2.Client]]:
    recorder = Recorder(create_app(Workspace(tmp_path), GuardSettings(), NOWHERE))
    with served(recorder) as client:
        yield recorder, client


@cache
def routes() -> set[tuple[str, str]]:
    app = create_app(Workspace(Path()), GuardSettings(), NOWHERE)
    assert isinstance(app, Guard) and isinstance(app.app, FastAPI)
    found = {
        (method.upper(), path)
        for path, operations in app.app.openapi()["paths"].items()
        for method in operations
        if path.startswith("/api/")
    }
    return {route for route in found if not route[1].startswith("/api/model/")} | PROXIED


def as_routes(requests: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Requests by the routes that they are for; what is for none stays as it is."""
    found = set()
    for method, path in requests:
        templates = [
            (known, template)
            for known, template in routes()
            if known == method and re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path)
        ]
        found.add(min(templates, key=lambda route: "{" in route[1], default=(method, path)))
    return found


def python_methods() -> list[str]:
    public = inspect.getmembers(ForgeLLMClient, inspect.isfunction)
    return [name for name, _ in public if not name.startswith("_") and name != "close"]


def camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda letter: letter[1].upper(), name)


def test_python_client_covers_every_route(server: tuple[Recorder, httpx2.Client]) -> None:
    recorder, http = server
    with ForgeLLMClient(str(http.base_url)) as client:
        for name in python_methods():
            if camel(name) in COMPOSED:
                continue
            method = getattr(client, name)
            needed = [
                p for p in inspect.signature(method).parameters.values() if p.default is p.empty
            ]
            most = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in needed)
            reply = method(*ARGUMENTS.get(camel(name), ("x",) * most))
            assert isinstance(reply["success"], bool), name
    assert as_routes(recorder.requests) == routes()


@pytest.mark.skipif(NODE is None, reason="needs Node")
def test_javascript_client_has_the_same_methods_and_covers_every_route(
    server: tuple[Recorder, httpx2.Client],
) -> None:
    recorder, http = server
    code = f"""
        const {{ ForgeLLMClient }} = require({json.dumps(str(STATIC / "forgellm-client.js"))});
        const client = new ForgeLLMClient({json.dumps(str(http.base_url))});
        const given = {json.dumps(ARGUMENTS)}, composed = {json.dumps(sorted(COMPOSED))};
        const names = Object.getOwnPropertyNames(ForgeLLMClient.prototype).slice(1);
        (async () => {{
            for (const name of names) {{
                if (composed.includes(name)) continue;
                const reply = await client[name](...(given[name] ?? (client[name].length ? ['x'] : [])));
                if (typeof reply.success !== 'boolean') throw new Error(name);
            }}
            console.log(JSON.stringify(names));
        }})();
    """
    assert NODE is not None
    done = subprocess.run([NODE, "-e", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {camel(name) for name in python_methods()}
    assert as_routes(recorder.requests) == routes()


@pytest.mark.parametrize("name", ["forgellm-client.js", "forgellm-client.mjs"])
def test_javascript_client_is_served(server: tuple[Recorder, httpx2.Client], name: str) -> None:
    reply = server[1].get(f"/static/{name}")
    assert (reply.status_code, reply.text) == (200, (STATIC / name).read_text())
    assert "javascript" in reply.headers["content-type"]


def test_every_error_code_comes_back_as_its_class() -> None:
    def tree(kind: type[errors.ForgeError]) -> Iterator[type[errors.ForgeError]]:
        yield kind
        for child in kind.__subclasses__():
            if child.__module__ == errors.__name__:
                yield from tree(child)

    for kind in tree(errors.ForgeError):
        envelope = {"error": "m", "error_code": kind.code, "details": {"a": 1}, "suggestion": "s"}
        error = error_of(envelope)
        assert type(error) is kind
        assert error.to_dict() == {"success": False, **envelope}


def test_an_unknown_error_code_is_kept_in_the_class_of_its_status() -> None:
    error = error_of({"error": "m", "error_code": "NEW_CODE"}, 409)
    assert isinstance(error, errors.Conflict)
    assert (error.code, error.status, error.message) == ("NEW_CODE", 409, "m")


def test_a_reply_of_something_else_is_no_reply() -> None:
    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        await send({"type": "http.response.start", "status": 502, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    with served(other) as http, ForgeLLMClient(str(http.base_url)) as client:
        with pytest.raises(errors.Unavailable, match="502"):
            client.health()


def test_client_is_a_public_name_that_costs_nothing_before_it_is_used() -> None:
    code = (
        "import sys, forgellm; assert 'forgellm.sdk' not in sys.modules;"
        "from forgellm import ForgeLLMClient; assert 'httpx2' in sys.modules;"
        "bad = {'fastapi', 'numpy', 'torch', 'pydantic'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "ForgeLLMClient" in __import__("forgellm").__all__
