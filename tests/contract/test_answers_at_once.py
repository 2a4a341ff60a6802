"""Several answers at once over HTTP: who may start, who waits, and that none are mixed up."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import EngineInfo
from forgellm.generation.loading import Source
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app
from forgellm.model_server.loading import LoadedModel
from forgellm.model_server.shelf import Shelf
from forgellm.model_server.turns import MAX_WAITING
from forgellm.paths import Workspace
from forgellm.schema.generation import Sampling
from serving import PATIENCE_SECONDS, eventually, served
from tiny_workspace import build_two_models

PLACES = 3
ENGINES = pytest.mark.parametrize("engine", ["torch", "mlx"])


class Engine:
    """Says its prompt's last token over and over, a token for each permit that the prompt got."""

    max_concurrent = PLACES

    def __init__(self) -> None:
        self.info = EngineInfo("test", "cpu", "float32", "", 0, 0, 512, {})
        self.permits = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.running: list[int] = []
        self.started: list[int] = []

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, stop_ids: frozenset[int]
    ) -> Iterator[int]:
        with self.lock:
            self.running.append(prompt_ids[-1])
            self.started.append(prompt_ids[-1])
            assert len(self.running) <= PLACES, "too many at once"
        try:
            for _ in range(sampling.max_tokens):
                assert self.permits.acquire(timeout=PATIENCE_SECONDS)
                yield prompt_ids[-1]
        finally:
            with self.lock:
                self.running.remove(prompt_ids[-1])

    def memory_bytes(self) -> int:
        return 1


class Opener:
    def __init__(self) -> None:
        self.engines: list[weakref.ref[Engine]] = []

    def __call__(self, source: Source) -> LoadedModel:
        engine = Engine()
        self.engines.append(weakref.ref(engine))
        return LoadedModel(engine, Tokenizer.load(source.model))  # type: ignore[arg-type]

    @property
    def engine(self) -> Engine:
        engine = self.engines[-1]()
        assert engine is not None
        return engine


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return build_two_models(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def opener() -> Opener:
    return Opener()


@pytest.fixture
def server(workspace: Workspace, opener: Opener) -> Iterator[httpx2.Client]:
    with served(create_app(Shelf(workspace, opener), GuardSettings())) as client:
        limits = httpx2.Limits(max_connections=None)
        with httpx2.Client(
            base_url=client.base_url, limits=limits, timeout=PATIENCE_SECONDS
        ) as many:
            many.post("/api/model/load", json={"model_name": "tiny"})
            eventually(lambda: many.get("/api/model/status").json()["loaded"])
            yield many


class Asker:
    """Asks in threads of its own, each time for two tokens."""

    def __init__(self, server: httpx2.Client, pool: ThreadPoolExecutor) -> None:
        self._server = server
        self._pool = pool

    def ask(self, letter: str) -> Future[httpx2.Response]:
        body = {"prompt": letter, "is_base_model": True, "max_tokens": 2, "request_id": letter}
        return self._pool.submit(self._server.post, "/api/model/generate", json=body)

    def cancel(self, letter: str) -> list[str]:
        reply = self._server.post("/api/model/cancel", json={"request_id": letter})
        found: list[str] = reply.json().get("cancelled", [])
        return found


@pytest.fixture
def asker(server: httpx2.Client) -> Iterator[Asker]:
    with ThreadPoolExecutor(100) as pool:
        yield Asker(server, pool)


def test_as_many_run_as_the_engine_has_places(asker: Asker, opener: Opener) -> None:
    engine = opener.engine
    asked = [asker.ask(letter) for letter in "abcdef"]
    eventually(lambda: len(engine.running) == PLACES)
    engine.permits.release(100)
    assert [answer.result().json()["response"] for answer in asked] == [2 * c for c in "abcdef"]
    assert len(engine.started) == 6


def test_the_line_is_bounded_beside_those_who_run(asker: Asker, opener: Opener) -> None:
    extra = 4
    names = [f"r{n}" for n in range(PLACES + MAX_WAITING + extra)]
    first = [asker.ask(name) for name in names[:PLACES]]
    eventually(lambda: len(opener.engine.running) == PLACES)
    asked = [*first, *(asker.ask(name) for name in names[PLACES:])]
    eventually(lambda: sum(answer.done() for answer in asked) == extra)
    opener.engine.permits.release(1000)
    codes = [answer.result().status_code for answer in asked]
    assert sorted(codes) == [200] * (PLACES + MAX_WAITING) + [503] * extra


def test_cancelling_one_leaves_the_others(asker: Asker, opener: Opener) -> None:
    asked = {letter: asker.ask(letter) for letter in "abc"}
    eventually(lambda: len(opener.engine.running) == PLACES)
    asked["d"] = asker.ask("d")
    eventually(lambda: asker.cancel("d") == ["d"])
    assert asked["d"].result().json()["finish_reason"] == "cancelled"
    assert asker.cancel("b") == ["b"]
    opener.engine.permits.release(100)
    replies = {letter: answer.result().json() for letter, answer in asked.items()}
    assert replies["b"]["finish_reason"] == "cancelled" and replies["b"]["response"] == "b"
    assert [replies[letter]["response"] for letter in "ac"] == ["aa", "cc"]


def test_unload_waits_until_every_answer_has_let_go(
    server: httpx2.Client, asker: Asker, opener: Opener
) -> None:
    running, permits = opener.engine.running, opener.engine.permits
    asked = [asker.ask(letter) for letter in "abc"]
    eventually(lambda: len(running) == PLACES)
    waits = asker.ask("d")
    unload = asker._pool.submit(server.post, "/api/model/unload")
    eventually(lambda: not server.get("/api/model/status").json()["loaded"])
    for left in (2, 1):
        permits.release()
        eventually(lambda left=left: len(running) == left)
        assert not unload.done()
    permits.release()
    assert unload.result().status_code == 200
    assert {answer.result().json()["error_code"] for answer in asked} == {"MODEL_NOT_LOADED"}
    assert waits.result().json()["error_code"] == "MODEL_NOT_LOADED"
    eventually(lambda: opener.engines[0]() is None)


def test_another_model_by_name_waits_for_the_answers_that_run(
    server: httpx2.Client, asker: Asker, opener: Opener
) -> None:
    """Those who come later wait behind it, so that it comes to its turn."""
    engine = opener.engine
    asked = [asker.ask(letter) for letter in "ab"]
    eventually(lambda: len(engine.running) == 2)
    body = {"model": "base/other", "prompt": "x", "max_tokens": 2}
    named = asker._pool.submit(server.post, "/v1/completions", json=body)
    for _ in range(20):  # it has every chance to do harm
        assert server.get("/api/model/status").json()["model_name"] == "tiny"
    late = asker.ask("c")
    engine.permits.release(100)
    assert [answer.result().json()["response"] for answer in asked] == ["aa", "bb"]
    eventually(lambda: len(opener.engines) == 2 and opener.engines[1]())
    opener.engine.permits.release(100)
    assert named.result().json()["choices"][0]["text"] == "xx"
    assert late.result().json()["response"] == "cc"
    assert server.get("/api/model/status").json()["model_name"] == "base/other"


# --- with real engines ----------------------------------------------------------------------------


@contextmanager
def real(workspace: Workspace, engine: str, **fields: Any) -> Iterator[httpx2.Client]:
    load = {"model_name": "tiny", "engine": engine, "dtype": "float32", **fields}
    with served(create_app(Shelf(workspace), GuardSettings())) as client:
        assert client.post("/api/model/load", json=load).status_code == 200
        yield client


@ENGINES
def test_an_answer_is_the_same_streamed_or_not(engine: str, workspace: Workspace) -> None:
    with real(workspace, engine) as server:
        body = {"prompt": "What is the mill for?", "temperature": 0.8, "seed": 3, "max_tokens": 24}
        body["history"] = [{"role": "user", "content": "Hello"}]
        whole = server.post("/api/model/generate", json=body).json()
        streamed = server.post("/api/model/generate", json=body | {"streaming": True}).text
        *tokens, done = [json.loads(line[6:]) for line in streamed.splitlines() if line]
        assert whole["response"] == done["response"] == "".join(t["text"] for t in tokens)
        assert 0 < whole["tokens_generated"] <= 24
        assert server.get("/api/model/status").json()["memory_usage_gb"] > 0
        plain = server.post("/api/model/generate", json=body | {"is_base_model": True}).json()
        assert plain["success"] is True
        assert server.post("/api/model/unload").status_code == 200
        eventually(lambda: all(thread.name != "mlx" for thread in threading.enumerate()))


@ENGINES
def test_twelve_at_once_each_get_their_own(engine: str, workspace: Workspace) -> None:
    with real(workspace, engine) as server, ThreadPoolExecutor(12) as pool:

        def ask(number: int) -> str:
            body = {"prompt": f"Sack {number}", "max_tokens": 20, "temperature": 0.9}
            reply = server.post("/api/model/generate", json=body | {"seed": number})
            found: str = reply.json()["response"]
            return found

        alone = [ask(number) for number in range(12)]
        assert len(set(alone)) == 12
        assert list(pool.map(ask, range(12))) == alone


@ENGINES
def test_one_of_several_is_cancelled(engine: str, workspace: Workspace) -> None:
    with real(workspace, engine) as server, ThreadPoolExecutor(3) as pool:
        body = {"prompt": "the mill", "temperature": 0, "max_tokens": 300, "is_base_model": True}
        whole = server.post("/api/model/generate", json=body).json()
        others = [pool.submit(server.post, "/api/model/generate", json=body) for _ in range(2)]
        ask = body | {"streaming": True, "request_id": "mine"}
        with server.stream("POST", "/api/model/generate", json=ask) as reply:
            lines = (json.loads(line[6:]) for line in reply.iter_lines() if line)
            first = next(lines)
            reply_to_cancel = server.post("/api/model/cancel", json={"request_id": "mine"})
            last = [first, *lines][-1]
        if reply_to_cancel.status_code == 200:  # it may have been quicker
            assert last["finish_reason"] in ("cancelled", whole["finish_reason"])
        assert whole["response"].startswith(last["response"])
        assert {answer.result().json()["response"] for answer in others} == {whole["response"]}


def test_kv_bits_are_for_mlx(workspace: Workspace) -> None:
    with real(workspace, "torch", kv_bits=8) as server:
        reply = server.post("/api/model/generate", json={"prompt": "x"}).json()
        assert "kv_bits" in reply["error"]
        assert server.post("/api/model/load", json={"model_name": "tiny", "kv_bits": 5}).json()[
            "details"
        ]["problems"]
