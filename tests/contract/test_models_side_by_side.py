"""Several models at once: loaded beside each other, asked by name, unloaded one by one."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from forgellm import hardware, supervisor
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app
from forgellm.model_server.loading import LoadedModel, open_model
from forgellm.model_server.room import weight_bytes
from forgellm.model_server.shelf import Shelf
from forgellm.paths import Workspace
from forgellm.runs.store import Run
from forgellm.training.session import Session
from serving import PATIENCE_SECONDS, eventually, served
from tiny_workspace import build_tiny_workspace, build_two_models, tiny_recipe

ASK: dict[str, Any] = {"prompt": "What is the mill for?", "temperature": 0, "max_tokens": 12}
ENGINES = pytest.mark.parametrize("engine", ["torch", "mlx"])


class Gate:
    """Opens real models that make one answer at a time, a token for each permit of theirs, and counts
    the openings."""

    def __init__(self) -> None:
        self.permits = {name: threading.Semaphore(0) for name in ("tiny", "other")}
        self.running: list[str] = []
        self.opened: list[str] = []

    def __call__(self, source: Any) -> LoadedModel:
        model, name = open_model(source), source.model.name
        self.opened.append(name)
        generate = model.engine.generate

        def slowly(*args: Any) -> Iterator[int]:
            self.running.append(name)
            try:
                for token_id in generate(*args):
                    assert self.permits[name].acquire(timeout=PATIENCE_SECONDS)
                    yield token_id
            finally:
                self.running.remove(name)

        model.engine.generate = slowly  # type: ignore[method-assign]
        model.engine.max_concurrent = 1
        return model


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return build_two_models(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def server(workspace: Workspace) -> Iterator[httpx2.Client]:
    with served(create_app(Shelf(workspace), GuardSettings())) as client:
        yield client
        client.post("/api/model/unload")


def load(server: httpx2.Client, name: str, **fields: Any) -> httpx2.Response:
    body = {"model_name": name, "engine": "torch", "dtype": "float32", **fields}
    return server.post("/api/model/load", json=body)


def models(server: httpx2.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.get("/api/model/status").json()["models"]
    return found


def names(server: httpx2.Client) -> list[str]:
    return [model["model_name"] for model in models(server)]


def ask(server: httpx2.Client, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = server.post("/api/model/generate", json=ASK | fields).json()
    return found


@ENGINES
def test_each_of_two_models_answers_by_its_name_and_the_latest_without(
    engine: str, server: httpx2.Client
) -> None:
    load(server, "tiny", engine=engine)
    tiny = ask(server)["response"]
    load(server, "other", engine=engine, beside=True)
    other = ask(server)["response"]
    assert tiny != other and names(server) == ["tiny", "other"]
    assert ask(server, model_name="tiny")["response"] == tiny
    assert ask(server, model_name="base/tiny")["response"] == tiny  # other words for the same files
    with ThreadPoolExecutor(4) as pool:
        wanted = ["tiny", "other"] * 4
        replies = list(pool.map(lambda name: ask(server, model_name=name)["response"], wanted))
    assert replies == [tiny, other] * 4
    assert server.post("/api/model/unload", json={"model_name": "other"}).status_code == 200
    assert names(server) == ["tiny"] and ask(server)["response"] == tiny


def test_status_describes_the_latest_and_all(server: httpx2.Client) -> None:
    load(server, "tiny")
    load(server, "other", beside=True)
    ask(server)
    status = server.get("/api/model/status").json()
    first, latest = status["models"]
    assert all(status[field] == latest[field] for field in status if field in latest)
    assert (first["model_name"], first["loaded"], first["iteration"]) == ("tiny", True, None)
    assert first["context_length"] == 512 and first["memory_usage_gb"] > 0
    load(server, "tiny", beside=True)  # not read again, but the latest now
    assert names(server) == ["other", "tiny"]
    load(server, "tiny")
    assert names(server) == ["tiny"]


def test_two_models_answer_at_once_each_with_its_own_line(workspace: Workspace) -> None:
    gate = Gate()
    with (
        served(create_app(Shelf(workspace, gate), GuardSettings())) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        load(server, "tiny")
        load(server, "other", beside=True)
        first = pool.submit(ask, server, model_name="tiny")
        eventually(lambda: gate.running == ["tiny"])
        waits = pool.submit(ask, server, model_name="tiny")
        second = pool.submit(ask, server, model_name="other")
        eventually(lambda: gate.running == ["tiny", "other"])
        gate.permits["other"].release(100)
        assert second.result()["success"] and not first.done() and not waits.done()
        gate.permits["tiny"].release(100)
        assert first.result()["response"] == waits.result()["response"]


def test_a_model_that_is_not_loaded_is_a_conflict_that_names_those_that_are(
    server: httpx2.Client,
) -> None:
    load(server, "tiny")
    for body in ({"model_name": "other"}, {"model_name": "tiny", "adapter_path": "../etc"}):
        for route in ("generate", "unload"):
            sent = ASK | body if route == "generate" else body
            reply = server.post(f"/api/model/{route}", json=sent)
            assert (reply.status_code, reply.json()["error_code"]) == (409, "MODEL_NOT_LOADED")
            loaded = reply.json()["details"]["loaded"]
            assert loaded == [{"model_name": "tiny", "adapter_path": None}]
    reply = server.post("/api/model/unload", json={"adapter_path": "x"})
    assert reply.json()["details"]["problems"][0]["field"] == "adapter_path"
    assert names(server) == ["tiny"]


def test_a_load_beside_that_fails_leaves_the_others_and_is_not_answered_for(
    server: httpx2.Client,
) -> None:
    load(server, "tiny")
    assert load(server, "none", beside=True).status_code == 404
    assert [(m["model_name"], m["error"] is None) for m in models(server)] == [
        ("tiny", True), ("none", False),
    ]  # fmt: skip
    assert ask(server)["error_code"] == "MODEL_NOT_LOADED"  # not the other's answer in its name
    assert ask(server, model_name="tiny")["success"]
    load(server, "other", beside=True)
    assert names(server) == ["tiny", "other"]


def test_a_model_too_large_to_stand_beside_is_refused_with_what_takes_how_much(
    workspace: Workspace, server: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(server, "tiny")
    ask(server)
    [tiny] = models(server)
    free = 1000
    monkeypatch.setattr(hardware, "training_memory_bytes", lambda: free)
    reply = load(server, "other", beside=True)
    error = reply.json()
    assert (reply.status_code, error["error_code"]) == (400, "MEMORY_TOO_SMALL")
    details = error["details"]
    assert details["needed_gb"] > details["available_gb"] == round(free / 1e9, 6)
    assert details["loaded"] == [
        {"model_name": "tiny", "adapter_path": None, "memory_usage_gb": tiny["memory_usage_gb"]}
    ]
    assert ask(server, model_name="tiny")["success"]
    assert load(server, "other").status_code == 200  # in place of the first nothing is foretold


def test_estimated_weights_are_those_that_are_measured(workspace: Workspace) -> None:
    shelf = Shelf(workspace)
    with served(create_app(shelf, GuardSettings())) as server:
        load(server, "tiny")
        eventually(lambda: models(server)[0]["loaded"])  # an answer's cache would count, too
        [(slot, source)] = shelf.slots
        assert slot.model is not None
        assert slot.model.engine.memory_bytes() == pytest.approx(weight_bytes(source), rel=0.02)


def test_openai_clients_choose_among_the_loaded(server: httpx2.Client) -> None:
    load(server, "tiny")
    load(server, "other", beside=True)
    ids = [model["id"] for model in server.get("/v1/models").json()["data"]]
    assert ids == ["base/other", "base/tiny"]
    body = {"prompt": "The mill", "temperature": 0, "max_tokens": 8}
    texts = [
        server.post("/v1/completions", json=body | {"model": name}).json()["choices"][0]["text"]
        for name in ids
    ]
    assert texts[0] != texts[1] and names(server) == ["tiny", "other"]


@ENGINES
def test_tokens_carry_their_scores_streamed_and_whole(engine: str, server: httpx2.Client) -> None:
    load(server, "tiny", engine=engine)
    plain = ask(server)
    assert "scores" not in plain
    whole = ask(server, top_logprobs=3)
    reply = server.post("/api/model/generate", json=ASK | {"top_logprobs": 3, "streaming": True})
    *tokens, done = [json.loads(line[6:]) for line in reply.text.splitlines() if line]
    scores = [score for token in tokens for score in token.get("scores", ())]
    assert whole["response"] == done["response"] == plain["response"]
    assert [s["token"] for s in whole["scores"]] == [s["token"] for s in scores]
    assert len(scores) == done["tokens_generated"] and done["prompt_tokens"] > 5
    assert done["context_length"] == 512
    for score in scores:
        assert set(score) == {"token", "log_prob", "top"} and len(score["top"]) == 3
        # Greedy and without penalties of note: each is among the likeliest, and all are sorted.
        likely = [other["log_prob"] for other in score["top"]]
        assert likely == sorted(likely, reverse=True)
        assert 0 < sum(map(math.exp, likely)) <= 1.001
    none = ask(server, top_logprobs=0)["scores"]
    assert none and all(score["top"] == [] for score in none)
    failed = server.post("/api/model/generate", json=ASK | {"top_logprobs": 21}).json()
    assert failed["error_code"] == "INVALID_REQUEST"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with checkpoints 4, 8 and 12."""
    workspace = build_tiny_workspace(tmp_path_factory.mktemp("run") / "w")
    run, lock = supervisor.claim_new_run(workspace, tiny_recipe(), max_seq_length=64)
    with lock:
        assert Session().train(run).phase == "completed"
    return run


def test_base_latest_and_an_early_checkpoint_of_a_run_side_by_side(run: Run) -> None:
    workspace = Workspace(run.folder.parents[2])
    adapter = f"models/cpt/{run.folder.name}"
    with served(create_app(Shelf(workspace), GuardSettings())) as server:
        load(server, "tiny")
        for which in ("@latest", "@4"):
            assert (
                load(server, "tiny", adapter_path=adapter + which, beside=True).status_code == 200
            )
        texts = [
            ask(server, model_name="tiny", adapter_path=path)["response"]
            for path in (None, f"{adapter}@latest", f"{adapter}@4")
        ]
        assert texts[1] != texts[0]
        assert [model["iteration"] for model in models(server)] == [None, 12, 4]
        missing = load(server, "tiny", adapter_path=f"{adapter}@5", beside=True)
        assert missing.json()["error_code"] == "CHECKPOINT_NOT_FOUND"
        assert missing.json()["details"]["available"] == [4, 8, 12]


def test_loading_the_latest_again_takes_a_newer_checkpoint(run: Run) -> None:
    workspace = Workspace(run.folder.parents[2])
    latest = {"adapter_path": f"models/cpt/{run.folder.name}@latest", "beside": True}
    newest = run.folder / "checkpoints" / "0000012"
    with served(create_app(Shelf(workspace), GuardSettings())) as server:
        newest.rename(run.folder / "put-aside")
        load(server, "tiny")
        load(server, "tiny", **latest)
        ask(server)
        assert [model["iteration"] for model in models(server)] == [None, 8]
        (run.folder / "put-aside").rename(newest)
        load(server, "tiny", **latest)
        ask(server)
        assert [model["iteration"] for model in models(server)] == [None, 12]
