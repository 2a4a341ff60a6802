"""The model server over HTTP: the spec's shapes, loading, streams, hang-ups, the queue."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2
import pytest

from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.base import EngineInfo
from forgellm.errors import ForgeError, UnsupportedModel
from forgellm.generation.loading import Source
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app
from forgellm.model_server.loading import LoadedModel
from forgellm.model_server.shelf import Shelf
from forgellm.model_server.turns import MAX_WAITING
from forgellm.paths import Workspace
from forgellm.schema.generation import Sampling
from forgellm.web.app import create_app as create_web_app
from serving import PATIENCE_SECONDS, eventually, served
from tiny_workspace import build_two_models

TEXT = "The wheel 🐢 turns all day."
LOAD = {"model_name": "tiny"}
ASK = {"prompt": "What is the mill for?", "temperature": 0}
# Hangs up when nothing comes, but not while a slow machine still connects.
IMPATIENT = httpx2.Timeout(PATIENCE_SECONDS, read=0.3)


class Engine:
    """Says TEXT, one token for each permit; without a gate at once."""

    max_concurrent = 1

    def __init__(self, tokenizer: Tokenizer, gate: threading.Semaphore | None = None) -> None:
        self.info = EngineInfo("test", "cpu", "float32", "", 0, 0, 512, {})
        self.ids = tokenizer.encode(TEXT)
        self.gate = gate
        self.num_made = 0
        self.num_running = 0

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, stop_ids: frozenset[int]
    ) -> Iterator[int]:
        self.num_running += 1
        assert self.num_running == 1, "two answers at once"
        try:
            for token_id in self.ids[: sampling.max_tokens]:
                if self.gate is not None:
                    assert self.gate.acquire(timeout=PATIENCE_SECONDS)
                self.num_made += 1
                yield token_id
        finally:
            self.num_running -= 1

    def memory_bytes(self) -> int:
        return 8_200_000_000


class Opener:
    """Opens engines as told: at once, when let, or with an error."""

    def __init__(self) -> None:
        self.tokenizer: Tokenizer | None = None
        self.error: Exception | None = None
        self.may_open = threading.Event()
        self.may_open.set()
        self.gate: threading.Semaphore | None = None
        self.sources: list[Source] = []
        self.engines: list[weakref.ref[Engine]] = []

    def __call__(self, source: Source) -> LoadedModel:
        self.sources.append(source)
        assert self.may_open.wait(PATIENCE_SECONDS)
        if self.error is not None:
            raise self.error
        tokenizer = Tokenizer.load(source.model)
        engine = Engine(tokenizer, self.gate)
        self.engines.append(weakref.ref(engine))
        return LoadedModel(engine, tokenizer)  # type: ignore[arg-type]

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
        yield client


@pytest.fixture
def loaded(server: httpx2.Client) -> httpx2.Client:
    return load(server)


def load(server: httpx2.Client, **change: Any) -> httpx2.Client:
    assert server.post("/api/model/load", json=LOAD | change).status_code == 200
    eventually(lambda: not status(server)["is_loading"])
    return server


def status(server: httpx2.Client) -> dict[str, Any]:
    reply = server.get("/api/model/status")
    assert reply.status_code == 200
    found: dict[str, Any] = reply.json()
    return found


def failed(reply: httpx2.Response, status_code: int, code: str) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()
    assert set(found) == {"success", "error", "error_code", "details", "suggestion"}
    assert (reply.status_code, found["error_code"]) == (status_code, code)
    return found


def test_replies_have_the_fields_of_the_spec(server: httpx2.Client) -> None:
    assert server.post("/api/model/load", json=LOAD).json() == {
        "success": True,
        "message": "Model loading started",
        "model_name": "tiny",
        "adapter_path": None,
    }
    answer = server.post("/api/model/generate", json=ASK).json()
    assert answer.pop("generation_time_seconds") > 0 and answer.pop("tokens_per_second") > 0
    count = answer.pop("tokens_generated")
    assert answer.pop("request_id").startswith("gen-")
    assert answer.pop("prompt_tokens") > 5 and answer.pop("context_length") == 512
    assert answer == {"success": True, "response": TEXT, "finish_reason": "stop"} and count > 5
    found = {
        "loaded": True,
        "is_loading": False,
        "model_name": "tiny",
        "adapter_path": None,
        "model_type": "instruct",
        "memory_usage_gb": 8.2,
        "error": None,
    }
    one = found | {"iteration": None, "context_length": 512}
    assert status(server) == {"success": True, **found, "models": [one], "upstream_models": None}
    assert server.post("/api/model/unload").json() == {
        "success": True,
        "message": "Model unloaded successfully",
    }
    assert status(server)["loaded"] is False
    assert server.get("/api/health").json()["status"] == "healthy"


def test_generate_without_a_model_is_a_conflict(server: httpx2.Client) -> None:
    found = failed(server.post("/api/model/generate", json=ASK), 409, "MODEL_NOT_LOADED")
    assert "/api/model/load" in found["suggestion"]


def test_load_answers_at_once_and_generate_waits_for_it(
    server: httpx2.Client, opener: Opener
) -> None:
    opener.may_open.clear()
    server.post("/api/model/load", json=LOAD)
    found = status(server)
    assert (found["loaded"], found["is_loading"], found["model_name"]) == (False, True, "tiny")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post, "/api/model/generate", json=ASK)
        assert status(server)["is_loading"] and not answer.done()
        opener.may_open.set()
        assert answer.result().json()["response"] == TEXT


def test_what_is_loaded_or_loading_is_not_loaded_again(
    server: httpx2.Client, opener: Opener
) -> None:
    opener.may_open.clear()
    server.post("/api/model/load", json=LOAD)
    server.post("/api/model/load", json={"model_name": "base/tiny"})
    opener.may_open.set()
    load(server)
    assert len(opener.sources) == 1 and status(server)["loaded"]
    load(server, model_name="other")
    assert len(opener.sources) == 2


def test_failed_load_leaves_no_model_and_says_why(server: httpx2.Client, opener: Opener) -> None:
    load(server)
    first = opener.engines[0]
    opener.error = UnsupportedModel("This architecture is not known")
    load(server, model_name="other")
    found = status(server)
    assert (found["loaded"], found["model_name"]) == (False, "other")
    assert found["error"]["error_code"] == "MODEL_UNSUPPORTED"
    assert first() is None
    answer = failed(server.post("/api/model/generate", json=ASK), 409, "MODEL_NOT_LOADED")
    assert "This architecture is not known" in answer["error"]
    opener.error = None
    assert status(load(server, model_name="other"))["loaded"]


def test_unexpected_failure_of_a_load_shows_no_inside(
    server: httpx2.Client, opener: Opener
) -> None:
    opener.error = RuntimeError("/home/someone/secret at 0xdeadbeef")
    found = status(load(server))
    assert found["error"]["error_code"] == "INTERNAL_ERROR" and "secret" not in str(found)


def test_unknown_model_is_not_found_and_takes_the_place_of_the_old(loaded: httpx2.Client) -> None:
    """A client that ignores the reply must not get the old model's answers under the new name."""
    reply = loaded.post("/api/model/load", json={"model_name": "no/such-model"})
    assert failed(reply, 404, "MODEL_NOT_FOUND")["details"]["searched_paths"]
    assert status(loaded)["loaded"] is False
    failed(loaded.post("/api/model/generate", json=ASK), 409, "MODEL_NOT_LOADED")


@pytest.mark.parametrize("path", ["models/cpt/none", "../../etc", "/etc", "models/base/tiny", "~"])
def test_adapter_that_is_none_is_not_found(path: str, server: httpx2.Client) -> None:
    reply = server.post("/api/model/load", json=LOAD | {"adapter_path": path})
    assert failed(reply, 404, "CHECKPOINT_NOT_FOUND")["details"] == {"adapter_path": path}


@pytest.mark.parametrize(
    ("route", "change", "field"),
    [
        ("generate", {"max_tokens": 0}, "max_tokens"),
        ("generate", {"temperature": -1}, "temperature"),
        ("generate", {"top_p": 1.1}, "top_p"),
        ("generate", {"history": [{"role": "wizard", "content": "x"}]}, "history.role"),
        ("generate", {"prompt": 5}, "prompt"),
        ("generate", {"max_token": 5}, "max_token"),
        ("load", {"model_name": ""}, "model_name"),
        ("load", {"engine": "gpu"}, "engine"),
    ],
)
def test_wrong_values_are_named(
    route: str, change: dict[str, Any], field: str, loaded: httpx2.Client
) -> None:
    body = (ASK if route == "generate" else LOAD) | change
    found = failed(loaded.post(f"/api/model/{route}", json=body), 400, "INVALID_REQUEST")
    assert [problem["field"] for problem in found["details"]["problems"]] == [field]


def test_prompt_longer_than_the_context_is_refused(loaded: httpx2.Client) -> None:
    for streaming in (False, True):
        body = ASK | {"prompt": "mill " * 2000, "streaming": streaming}
        found = failed(loaded.post("/api/model/generate", json=body), 400, "INVALID_REQUEST")
        assert found["details"]["context_length"] == 512
    assert loaded.post("/api/model/generate", json=ASK).status_code == 200


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
def test_first_token_is_on_the_wire_before_the_second_is_made(
    accept: str, server: httpx2.Client, opener: Opener
) -> None:
    opener.gate = threading.Semaphore(1)
    load(server)
    body, headers = ASK | {"streaming": True}, {"accept": accept}
    with server.stream("POST", "/api/model/generate", json=body, headers=headers) as reply:
        assert reply.headers["content-type"].startswith(accept)
        lines = (line for line in reply.iter_lines() if line)
        items = [parse(next(lines), accept)]
        assert opener.engine.num_made == 1
        opener.gate.release(100)
        items += [parse(line, accept) for line in lines]
    *tokens, done = items
    assert all(item == {"type": "token", "text": item["text"]} for item in tokens)
    assert "".join(item["text"] for item in tokens) == done["response"] == TEXT
    assert set(done) == {
        "type", "response", "tokens_generated", "generation_time_seconds", "tokens_per_second",
        "finish_reason", "request_id", "prompt_tokens", "context_length",
    }  # fmt: skip
    assert done["request_id"] == reply.headers["x-request-id"]
    assert done["type"] == "done" and not any("\ufffd" in item["text"] for item in tokens)


def parse(line: str, accept: str) -> dict[str, Any]:
    if accept == "text/event-stream":
        assert line.startswith("data: ")
        line = line.removeprefix("data: ")
    found: dict[str, Any] = json.loads(line)
    return found


def test_client_that_goes_away_stops_its_answer(server: httpx2.Client, opener: Opener) -> None:
    gate = opener.gate = threading.Semaphore(1)
    engine = (load(server), opener.engine)[1]
    told, engine.ids = engine.ids, engine.ids * 10_000
    body = ASK | {"max_tokens": len(engine.ids)}
    with server.stream("POST", "/api/model/generate", json=body | {"streaming": True}) as reply:
        next(reply.iter_lines())
    let_end(gate, engine)
    with pytest.raises(httpx2.ReadTimeout):  # not streaming: gone before the answer is there
        server.post("/api/model/generate", json=body, timeout=IMPATIENT)
    let_end(gate, engine)
    engine.ids = told
    gate.release(1000)
    assert server.post("/api/model/generate", json=ASK).json()["response"] == TEXT


def let_end(gate: threading.Semaphore, engine: Engine) -> None:
    """One permit at a time: the answer, far too long to complete, must end."""
    before = engine.num_made
    while engine.num_running:
        made = engine.num_made
        gate.release()
        eventually(partial(_has_moved, engine, made))
    assert engine.num_made - before < len(engine.ids) - 1
    while gate.acquire(blocking=False):
        pass


def _has_moved(engine: Engine, made: int) -> bool:
    return engine.num_made > made or not engine.num_running


def test_client_that_leaves_the_queue_takes_no_turn(server: httpx2.Client, opener: Opener) -> None:
    gate = opener.gate = threading.Semaphore(0)
    engine = (load(server), opener.engine)[1]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, "/api/model/generate", json=ASK)
        eventually(lambda: engine.num_running)
        with pytest.raises(httpx2.ReadTimeout):
            server.post("/api/model/generate", json=ASK, timeout=IMPATIENT)
        gate.release(1000)
        assert first.result().json()["response"] == TEXT
    assert server.post("/api/model/generate", json=ASK).json()["response"] == TEXT
    assert engine.num_made == 2 * len(engine.ids)


def test_answers_are_made_one_at_a_time_and_the_queue_is_bounded(
    server: httpx2.Client, opener: Opener
) -> None:
    gate = opener.gate = threading.Semaphore(0)
    load(server)
    extra = 5
    limits = httpx2.Limits(max_connections=None)
    with (
        ThreadPoolExecutor(1 + MAX_WAITING + extra) as pool,
        httpx2.Client(base_url=server.base_url, limits=limits, timeout=PATIENCE_SECONDS) as many,
    ):
        asked = [
            pool.submit(many.post, "/api/model/generate", json=ASK)
            for _ in range(1 + MAX_WAITING + extra)
        ]
        eventually(lambda: sum(answer.done() for answer in asked) == extra)
        gate.release(100_000)
        replies = [answer.result() for answer in asked]
    refused = [reply for reply in replies if reply.status_code != 200]
    assert len(refused) == extra
    for reply in refused:
        failed(reply, 503, "UNAVAILABLE")
        assert int(reply.headers["retry-after"]) > 0
    assert {r.json()["response"] for r in replies if r.status_code == 200} == {TEXT}


@pytest.mark.parametrize("how", ["unload", "load"])
def test_giving_up_a_model_ends_its_answer_and_frees_it(
    how: str, server: httpx2.Client, opener: Opener
) -> None:
    gate = opener.gate = threading.Semaphore(1)
    load(server)
    engine = opener.engines[0]
    with server.stream("POST", "/api/model/generate", json=ASK | {"streaming": True}) as reply:
        lines = (line for line in reply.iter_lines() if line)
        next(lines)
        with ThreadPoolExecutor(1) as pool:
            body = {"model_name": "other"} if how == "load" else {}
            change = pool.submit(server.post, f"/api/model/{how}", json=body)
            eventually(lambda: not status(server)["loaded"])
            gate.release(2)
            assert change.result().status_code == 200
        last = [json.loads(line.removeprefix("data: ")) for line in lines][-1]
    assert (last["type"], last["error_code"]) == ("error", "MODEL_NOT_LOADED")
    eventually(lambda: engine() is None)
    if how == "load":
        gate.release(1000)
        assert server.post("/api/model/generate", json=ASK).json()["response"] == TEXT
        assert status(server)["model_name"] == "other"


def test_the_last_load_wins_and_who_waits_gets_it(server: httpx2.Client, opener: Opener) -> None:
    opener.may_open.clear()
    server.post("/api/model/load", json=LOAD)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post, "/api/model/generate", json=ASK)
        eventually(lambda: opener.sources)
        server.post("/api/model/load", json={"model_name": "other"})
        opener.may_open.set()
        assert answer.result().status_code == 200
    assert status(server)["model_name"] == "other"
    eventually(lambda: opener.engines[0]() is None)
    assert [source.model.name for source in opener.sources] == ["tiny", "other"]


def test_unload_ends_a_load_in_progress(server: httpx2.Client, opener: Opener) -> None:
    opener.may_open.clear()
    server.post("/api/model/load", json=LOAD)
    assert server.post("/api/model/unload").status_code == 200
    assert not status(server)["is_loading"]
    opener.may_open.set()
    eventually(lambda: opener.engines and opener.engines[0]() is None)
    failed(server.post("/api/model/generate", json=ASK), 409, "MODEL_NOT_LOADED")


def test_engine_that_fails_is_an_error_and_the_next_answer_works(
    loaded: httpx2.Client, opener: Opener
) -> None:
    ids = opener.engine.ids
    opener.engine.ids = None  # type: ignore[assignment]
    failed(loaded.post("/api/model/generate", json=ASK), 500, ForgeError.code)
    with loaded.stream("POST", "/api/model/generate", json=ASK | {"streaming": True}) as reply:
        item = json.loads(next(reply.iter_lines()).removeprefix("data: "))
    assert (item["type"], item["error_code"]) == ("error", ForgeError.code)
    opener.engine.ids = ids
    assert loaded.post("/api/model/generate", json=ASK).json()["response"] == TEXT


@pytest.mark.parametrize(
    "least",
    [
        {"temperature": 5e-324},
        {"temperature": 1e-9},
        {"temperature": 1, "top_p": 5e-324},
        {"temperature": 1, "top_p": 1e-30},
        {"temperature": 1e-3, "repetition_penalty": 0.01, "frequency_penalty": 2},
        {"temperature": 10, "repetition_penalty": 10},
    ],
)
@pytest.mark.parametrize("engine", ["torch", "mlx"])
def test_a_real_model_answers_at_the_bounds_of_sampling(
    workspace: Workspace, engine: str, least: dict[str, float]
) -> None:
    with served(create_app(Shelf(workspace), GuardSettings())) as server:
        server.post("/api/model/load", json=LOAD | {"dtype": "float32", "engine": engine})
        body = {"prompt": "What is the mill for?", "max_tokens": 8, "seed": 1, **least}
        reply = server.post("/api/model/generate", json=body)
        assert reply.status_code == 200, reply.text


def test_64_questions_at_once_through_the_web_server_each_get_their_own_answer(
    workspace: Workspace,
) -> None:
    asks = [
        {"prompt": f"Sack {number} of the mill", "seed": number, "max_tokens": 8}
        for number in range(64)
    ]
    limits = httpx2.Limits(max_connections=None)
    model_app = create_app(Shelf(workspace), GuardSettings())
    with (
        served(model_app) as server,
        served(create_web_app(workspace, GuardSettings(), str(server.base_url))) as web,
        httpx2.Client(base_url=web.base_url, limits=limits, timeout=PATIENCE_SECONDS) as many,
        ThreadPoolExecutor(len(asks)) as pool,
    ):
        load(server)
        alone = [many.post("/api/model/generate", json=ask).json()["response"] for ask in asks]
        assert len(set(alone)) > 60  # a mix-up would show
        replies = pool.map(lambda ask: many.post("/api/model/generate", json=ask), asks)
        for reply, expected in zip(replies, alone, strict=True):
            if reply.status_code == 503:
                assert int(reply.headers["retry-after"]) > 0
            else:
                assert reply.json()["response"] == expected
