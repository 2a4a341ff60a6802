"""Answers from an upstream: another model server of ours, with a real tiny model, and odd ones."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from forgellm.errors import InvalidRequest
from forgellm.generation.loading import Source
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app, create_app_before
from forgellm.model_server.loading import LoadedModel, open_model
from forgellm.model_server.shelf import Shelf
from forgellm.model_server.upstream.backend import Upstream
from forgellm.model_server.upstream.client import Limits, UpstreamClient
from forgellm.paths import Workspace
from forgellm.web.app import create_app as create_web_app
from odd_server import OddServer, json_reply, odd_server, stream_reply
from serving import PATIENCE_SECONDS, eventually, served
from tiny_workspace import build_two_models

TINY = "base/tiny"
KEY = "sk-very-secret"
USUAL = Limits()
ASK: dict[str, Any] = {"prompt": "What is the mill for?", "temperature": 0, "max_tokens": 12}
# Its first token is text: a stream says nothing while all it has is a part of a character.
LONG: dict[str, Any] = {"streaming": True, "max_tokens": 300, "temperature": 1, "seed": 5}
MESSAGES: list[Any] = [{"role": "user", "content": "What is the mill for?"}]


class Gate:
    """Lets the real engine make a token for each permit; at first as many as it likes."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(1_000_000)
        self.num_made = 0
        self.num_running = 0

    def open(self, source: Source) -> LoadedModel:
        model = open_model(Source(source.model, source.adapter, source.engine, "float32"))
        generate = model.engine.generate

        def gated(*args: Any) -> Iterator[int]:
            self.num_running += 1
            try:
                for token_id in generate(*args):
                    assert self.permits.acquire(timeout=PATIENCE_SECONDS)
                    self.num_made += 1
                    yield token_id
            finally:
                self.num_running -= 1

        model.engine.generate = gated  # type: ignore[method-assign]
        return model

    def let_end(self) -> None:
        """One permit at a time: the answer must end long before it is complete."""
        before = self.num_made
        while self.num_running:
            made = self.num_made
            self.permits.release()
            eventually(lambda made=made: self.num_made > made or not self.num_running)  # type: ignore[misc]
            time.sleep(0.02)  # the servers must get to see that their client is gone
        assert self.num_made - before < 250


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Iterator[httpx2.Client]:
    workspace = build_two_models(tmp_path_factory.mktemp("upstream"))
    with served(create_app(Shelf(workspace, gate.open), GuardSettings())) as client:
        assert client.post("/api/model/load", json={"model_name": "tiny"}).status_code == 200
        yield client
        gate.permits.release(1_000_000)


def serving(
    url: object, limits: Limits = USUAL, key: str | None = None
) -> AbstractContextManager[httpx2.Client]:
    """Our model server in front of the one at `url`."""
    client = UpstreamClient(str(url).rstrip("/"), key, limits)
    return served(create_app_before(Upstream(client), GuardSettings()))


@pytest.fixture
def server(upstream: httpx2.Client) -> Iterator[httpx2.Client]:
    with serving(upstream.base_url) as client:
        yield client


@pytest.fixture
def page(server: httpx2.Client, tmp_path: Path) -> Iterator[httpx2.Client]:
    """The web server, in a workspace without models."""
    app = create_web_app(Workspace(tmp_path), GuardSettings(), str(server.base_url).rstrip("/"))
    with served(app) as client:
        yield client


def items_of(client: httpx2.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    headers = {"accept": "application/x-ndjson"}
    ask = body | {"streaming": True}
    with client.stream("POST", "/api/model/generate", json=ask, headers=headers) as reply:
        return [json.loads(line) for line in reply.iter_lines() if line]


@pytest.mark.parametrize(
    "change", [{}, {"is_base_model": True, "history": MESSAGES}, {"repetition_penalty": 1.0}]
)
def test_the_page_talks_to_the_upstream_as_the_upstream_itself_would(
    change: dict[str, Any], page: httpx2.Client, upstream: httpx2.Client
) -> None:
    status = page.get("/api/model/status").json()
    assert status["loaded"] is True and status["model_name"] == TINY
    assert status["upstream_models"] == [TINY, "base/other"]
    body = ASK | change | {"top_logprobs": 2}
    wanted = upstream.post("/api/model/generate", json=body).json()
    whole = page.post("/api/model/generate", json=body).json()
    *tokens, done = items_of(page, body)
    same = ("response", "tokens_generated", "prompt_tokens", "finish_reason")
    assert [whole[name] for name in same] == [wanted[name] for name in same]
    assert [done[name] for name in same] == [wanted[name] for name in same]
    assert wanted["response"] and len(tokens) > 1
    assert "".join(token["text"] for token in tokens) == wanted["response"]
    for found in (whole["scores"], [score for token in tokens for score in token["scores"]]):
        assert [score["token"] for score in found] == [score["token"] for score in wanted["scores"]]
        values = [score["log_prob"] for score in wanted["scores"]]
        assert [score["log_prob"] for score in found] == pytest.approx(values, abs=1e-3)


def test_load_chooses_among_the_upstreams_models(
    page: httpx2.Client, upstream: httpx2.Client
) -> None:
    assert page.post("/api/model/load", json={"model_name": "other"}).json()["success"] is True
    assert page.get("/api/model/status").json()["model_name"] == "other"
    page.post("/api/model/load", json={"model_name": TINY, "beside": True})
    names = [item["model_name"] for item in page.get("/api/model/status").json()["models"]]
    assert names == ["other", TINY]
    unknown = page.post("/api/model/load", json={"model_name": "gpt-4o"})
    assert (unknown.status_code, unknown.json()["error_code"]) == (404, "MODEL_NOT_FOUND")
    assert TINY in unknown.json()["suggestion"]
    ours = {"model_name": TINY, "adapter_path": "models/cpt/mine"}
    refused = page.post("/api/model/load", json=ours)
    assert refused.status_code == 400 and "Publish it" in refused.json()["suggestion"]
    assert (
        page.post("/api/model/load", json={"model_name": TINY, "dtype": "float32"}).status_code
        == 400
    )
    assert page.post("/api/model/unload").json()["success"] is True
    assert page.get("/api/model/status").json()["loaded"] is False
    asked = page.post("/api/model/generate", json=ASK)
    assert (asked.status_code, asked.json()["error_code"]) == (409, "MODEL_NOT_LOADED")


def test_openai_clients_get_what_the_upstream_says(
    server: httpx2.Client, upstream: httpx2.Client
) -> None:
    with connect(server) as ours, connect(upstream) as theirs:
        assert [model.id for model in ours.models.list()] == [TINY, "base/other"]
        assert ours.models.retrieve(TINY).id == TINY
        ask: Any = {"model": TINY, "messages": MESSAGES, "temperature": 0, "max_tokens": 9}
        wanted = theirs.chat.completions.create(**ask)
        found = ours.chat.completions.create(**ask)
        assert (found.choices, found.usage) == (wanted.choices, wanted.usage)
        options = {"include_usage": True}
        chunks = list(ours.chat.completions.create(**ask, stream=True, stream_options=options))
        assert chunks[-1].usage == wanted.usage and len(chunks) > 3
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        assert text == wanted.choices[0].message.content
        score: Any = {"model": TINY, "prompt": "The mill", "echo": True, "logprobs": 1}
        assert (
            ours.completions.create(**score, max_tokens=0).choices
            == theirs.completions.create(**score, max_tokens=0).choices
        )
        with pytest.raises(openai.NotFoundError) as refused:
            ours.chat.completions.create(**ask | {"model": "gpt-4o"})
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError, match="tools"):
            ours.chat.completions.create(**ask, tools=[{"type": "function"}])


def connect(server: httpx2.Client) -> openai.OpenAI:
    url = str(server.base_url).rstrip("/") + "/v1"
    return openai.OpenAI(base_url=url, api_key="any", max_retries=0)


@contextmanager
def closed(gate: Gate) -> Iterator[None]:
    """No token is made but those that are let."""
    gate.permits = threading.Semaphore(0)
    try:
        yield
    finally:
        gate.permits.release(1_000_000)


def test_cancel_ends_the_answer_here_and_there(page: httpx2.Client, gate: Gate) -> None:
    body = ASK | LONG | {"request_id": "mine"}
    with closed(gate):
        gate.permits.release(3)
        with page.stream("POST", "/api/model/generate", json=body) as reply:
            lines = (line for line in reply.iter_lines() if line)
            assert json.loads(next(lines)[6:])["type"] == "token"
            assert page.post("/api/model/cancel").json()["cancelled"] == ["mine"]
            last = [json.loads(line[6:]) for line in lines][-1]
        assert (last["type"], last["finish_reason"]) == ("done", "cancelled") and last["response"]
        gate.let_end()
        with ThreadPoolExecutor(1) as pool:  # one that has not begun
            waiting = pool.submit(
                page.post, "/api/model/generate", json=ASK | {"request_id": "two"}
            )
            eventually(lambda: cancels(page, "two"))
            assert waiting.result().json()["finish_reason"] == "cancelled"
        gate.let_end()
    assert page.post("/api/model/cancel", json={"request_id": "mine"}).status_code == 404


def cancels(client: httpx2.Client, request_id: str) -> bool:
    reply = client.post("/api/model/cancel", json={"request_id": request_id})
    return bool(reply.status_code == 200)


def test_openai_stream_is_cancelled_by_its_id(server: httpx2.Client, gate: Gate) -> None:
    with closed(gate), connect(server) as client:
        gate.permits.release(3)
        ask: Any = {"model": TINY, "messages": MESSAGES, "seed": 5}
        chunks = iter(client.chat.completions.create(**ask, stream=True))
        assert cancels(server, next(chunks).id)
        with pytest.raises(openai.APIError, match="cancelled"):
            list(chunks)
        gate.let_end()


def test_client_that_goes_away_ends_the_upstreams_answer(
    page: httpx2.Client, server: httpx2.Client, gate: Gate
) -> None:
    body = ASK | LONG
    with closed(gate):
        gate.permits.release(2)
        with page.stream("POST", "/api/model/generate", json=body) as reply:
            next(reply.iter_lines())
        gate.let_end()
        with connect(server) as client:
            ask: Any = {"model": TINY, "messages": MESSAGES, "seed": 5}
            gate.permits.release(2)
            with client.chat.completions.create(**ask, stream=True) as chunks:
                next(iter(chunks))
            gate.let_end()
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(**ask, timeout=0.3)
            gate.let_end()


@pytest.fixture
def odd() -> Iterator[OddServer]:
    with odd_server() as server:
        yield server


Say = Callable[[Any], None]


def says(status: int, content: Any, **headers: str) -> Say:
    return lambda handler: json_reply(handler, status, content, **headers)


def streams(*pieces: bytes) -> Say:
    return lambda handler: stream_reply(handler, *pieces)


CHUNK = b'data: {"choices": [{"delta": {"content": "Hm"}, "finish_reason": null}]}\n\n'
OPENAI = {"error": {"message": f"no {KEY}" + "!" * 900, "type": "x", "param": "seed", "code": 1}}


@pytest.mark.parametrize(
    ("say", "status", "code", "words"),
    [
        (says(302, {}, location="/elsewhere"), 503, "MODEL_SERVER_UNAVAILABLE", "redirect"),
        (says(401, OPENAI), 503, "MODEL_SERVER_UNAVAILABLE", "refuses access: no ***!"),
        (says(404, OPENAI), 404, "MODEL_NOT_FOUND", "not found"),
        (says(404, b"<html>"), 503, "MODEL_SERVER_UNAVAILABLE", "no such route"),
        (says(422, OPENAI), 400, "INVALID_REQUEST", "refused the request: no ***!"),
        (says(429, {}), 503, "UNAVAILABLE", "busy"),
        (says(500, {"error": "boom"}), 503, "MODEL_SERVER_UNAVAILABLE", "status 500: boom"),
        (says(200, b"<html>"), 503, "MODEL_SERVER_UNAVAILABLE", "OpenAI-compatible"),
        (says(200, b"x" * 2000), 503, "MODEL_SERVER_UNAVAILABLE", ""),
        (streams(b"data: [1]\n\n"), 503, "MODEL_SERVER_UNAVAILABLE", "OpenAI-compatible"),
        (streams(CHUNK), 503, "MODEL_SERVER_UNAVAILABLE", "stopped while it answered"),
        (streams(CHUNK, b"data: " + b"x" * 600), 503, "MODEL_SERVER_UNAVAILABLE", "larger"),
        (streams(*[CHUNK] * 50), 503, "MODEL_SERVER_UNAVAILABLE", "larger"),
        (streams(CHUNK, b'data: {"error": "boom"}\n\n'), 503, "MODEL_SERVER_UNAVAILABLE", ": boom"),
    ],
)  # fmt: skip
def test_every_failure_of_an_upstream_is_our_envelope(
    say: Say, status: int, code: str, words: str, odd: OddServer
) -> None:
    odd.say = say
    limits = Limits(max_event_bytes=500, max_reply_bytes=1500, max_stream_bytes=2000)
    with serving(odd.url, limits, KEY) as server:
        whole = server.post("/api/model/generate", json=ASK)
        assert (whole.status_code, whole.json()["error_code"]) == (status, code)
        assert words in whole.json()["error"]
        last = items_of(server, ASK)[-1]
        assert last["error_code"] == code
        passed = server.post("/v1/chat/completions", json={"model": "odd", "messages": MESSAGES})
        assert set(passed.json()["error"]) == {"message", "type", "param", "code"}
    assert KEY not in whole.text + passed.text and len(whole.text) < 1500
    assert all(path.startswith("/v1/") for path, _, _ in odd.requests)
    assert odd.requests[-1][1]["authorization"] == f"Bearer {KEY}"


def test_silent_and_dead_upstreams_are_unavailable(odd: OddServer) -> None:
    gone = threading.Event()
    odd.say = lambda handler: gone.wait(PATIENCE_SECONDS)
    with serving(odd.url, Limits(reply_seconds=0.2)) as server:
        for path, body in (
            ("/api/model/generate", ASK),
            ("/v1/completions", {"model": "odd", "prompt": "The"}),
        ):
            reply = server.post(path, json=body)
            assert reply.status_code == 503 and "said nothing" in reply.text
        gone.set()
    with serving("http://127.0.0.1:1") as server:
        for path in ("/api/health", "/api/model/status", "/v1/models"):
            assert server.get(path).status_code == 503, path
        reply = server.post("/api/model/generate", json=ASK)
        assert reply.json()["error_code"] == "MODEL_SERVER_UNAVAILABLE"
        assert "--upstream" in reply.json()["suggestion"]


def test_what_is_not_openais_is_left_out_where_it_is_refused_by_name(odd: OddServer) -> None:
    def say(handler: Any) -> None:
        asked = odd.requests[-1][2]
        for name in ("repetition_penalty", "stream_options"):
            if name in asked:
                message = f"Unrecognized request argument supplied: {name}"
                return json_reply(handler, 400, {"error": {"message": message}})
        end = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\r\n\r\ndata: [DONE]\n\n'
        return stream_reply(handler, b": hello\n", CHUNK, end)

    odd.say = say
    with serving(odd.url) as server:
        reply = server.post("/api/model/generate", json=ASK).json()
        assert (reply["response"], reply["tokens_generated"]) == ("Hm", 1)
        assert (reply["prompt_tokens"], reply["context_length"]) == (None, 64)
        num_asked = len(odd.requests)
        assert items_of(server, ASK)[-1]["response"] == "Hm"
        assert len(odd.requests) - num_asked <= 2  # it is remembered
        scored = server.post("/api/model/generate", json=ASK | {"top_logprobs": 1})
        assert scored.status_code == 400 and "top_logprobs" in scored.json()["suggestion"]


@pytest.mark.parametrize(
    "url",
    ["ftp://gpu", "gpu:8000", "http://", "http://key@gpu/v1", "http://gpu/v1?x=1", "http://g u", "http://gpu:x"],
)  # fmt: skip
def test_an_address_is_scheme_host_port_and_path(url: str) -> None:
    with pytest.raises(InvalidRequest, match="--upstream must be an address"):
        UpstreamClient(url)
