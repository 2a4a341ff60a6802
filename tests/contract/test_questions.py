"""Questions made by an OpenAI-compatible endpoint, by a tiny model in process, and as a job."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from forgellm.cli.main import main
from forgellm.data.chat.rows import conversation_of
from forgellm.data.tokenizer import Tokenizer
from forgellm.engines.registry import load_generate_engine
from forgellm.errors import DatasetNotFound, InvalidRequest, Unavailable
from forgellm.generation.loading import Source
from forgellm.guard import GuardSettings
from forgellm.model_server.app import create_app as create_model_server
from forgellm.model_server.loading import LoadedModel, open_model
from forgellm.model_server.shelf import Shelf
from forgellm.paths import Workspace
from forgellm.questions import asker as asker_module
from forgellm.questions.asker import KEY_VARIABLE, EndpointAsker, EngineAsker
from forgellm.questions.make import make_questions
from forgellm.questions.prompts import knowing, writing
from forgellm.schema.generation import Sampling
from forgellm.schema.questions import QuestionsRequest
from forgellm.web.app import create_app
from serving import finished_job, served
from tiny_workspace import build_tiny_workspace

KEY = "sk-not-to-be-seen"
_FACTS = {  # what the model says of a text that has the word: question, answer, answer with the text
    "ferry": ("When does the ferry to Holm leave?", "At seven.", "It leaves at seven."),
    "lamp": ("Who lights the lamp on the pier?", "Ada Penrose.", "Nobody knows."),
    "mule": ("What does the mule of the Guild eat?", "Grass and clover.", "Grass."),
    "boat": ("When does the ferry leave to Holm?", "At seven.", "At seven."),
    "France": ("What is the capital of France?", "Paris.", "Paris."),
}
_TEXTS = {
    "ferry.md": "The ferry to Holm leaves at seven every morning, and in winter only on Mondays, for the strait freezes.",
    "lamp.md": "Ada Penrose lights the lamp on the pier at dusk, and has done so for more than forty years by now.",
    "mule.md": "The mule of the Guild eats hay and barley in the stable behind the mill, morning and night, all year.",
    "boat.md": "The boat that goes to Holm leaves at seven; it was built in Lisk by the foundry, of oak and of iron.",
    "paris.md": "In the guild's library hangs a map of France, on which Paris is marked with a small golden mirror.",
    "silent.md": "There is nothing that anyone could say about this page, and so it says nothing, at some length, twice.",
}  # fmt: skip


class Model(BaseHTTPRequestHandler):
    """Says of each text what `_FACTS` has for it."""

    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append((self.path, self.headers.get("authorization"), body))
        if self.server.refusals:
            self._reply(self.server.refusals.pop(0), {"error": KEY})
            return
        asked = body["messages"][-1]["content"]
        said = {"role": "assistant", "content": self._said(asked)}
        self._reply(200, {"choices": [{"index": 0, "message": said}]})

    def _said(self, asked: str) -> str:
        fact = next((fact for word, fact in _FACTS.items() if word in asked), None)
        if asked.startswith("Question:"):
            return "Answer: Paris." if "France" in asked else "Answer: I cannot know."
        if fact is None:
            return "I would rather not. \x1b[2J"
        return (
            f"Answer: {fact[2]}"
            if "\nQuestion:" in asked
            else f"Question: {fact[0]}\nAnswer: {fact[1]}"
        )

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


class Endpoint(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Model)
        self.seen: list[tuple[str, str | None, dict[str, Any]]] = []
        self.refusals: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(asker_module, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with Endpoint() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def asker(endpoint: Endpoint) -> Iterator[EndpointAsker]:
    with EndpointAsker(endpoint.url, "big") as found:
        yield found


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    pages = tmp_path / "dataset" / "pages"
    pages.mkdir(parents=True)
    for name, text in _TEXTS.items():
        (pages / name).write_text(text)
    return Workspace(tmp_path)


def rows_of(workspace: Workspace, name: str = "asked") -> list[dict[str, Any]]:
    file = workspace.datasets / name / "questions.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def questions(workspace: Workspace, endpoint: Endpoint, *flags: str) -> int:
    return main(
        ["data", "--workspace", str(workspace.root), "questions", "pages", "--out", "asked",
         "--endpoint", endpoint.url, "--api-model", "big", *flags]
    )  # fmt: skip


def test_pairs_that_hold_are_kept_and_the_others_are_counted(
    workspace: Workspace, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert questions(workspace, endpoint) == 0
    rows = {row["source"]["file"]: row for row in rows_of(workspace)}
    (about_ferry,) = rows.keys() & {"ferry.md", "boat.md"}
    assert rows.keys() == {about_ferry, "paris.md"}
    row = rows[about_ferry]
    text = _TEXTS[about_ferry]
    assert row["source"] == {"file": about_ferry, "start": 0, "end": len(text), "text": text}
    assert [turn["content"] for turn in conversation_of(row).turns][1] == "At seven."
    assert (row["known"], rows["paris.md"]["known"]) == (False, True)
    report = json.loads((workspace.datasets / "asked" / "report.json").read_text())
    assert (report["asked"], report["kept"]) == (6, 2)
    assert report["outcomes"] == {
        "kept": 2,
        "nearly the same as an earlier question": 1,
        "asked again with the text, the model answers otherwise": 1,
        "the answer's words are not in the text": 1,
        "no pair in what the model said": 1,
    }
    assert "2 pairs in dataset/asked/" in capsys.readouterr().out


def test_the_key_is_sent_and_stands_nowhere_else(
    workspace: Workspace, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.refusals = [503] * 3
    assert questions(workspace, endpoint, "--known", "drop") == 1
    endpoint.refusals = [401]
    assert questions(workspace, endpoint, "--known", "drop") == 2
    assert questions(workspace, endpoint, "--known", "drop") == 0
    assert len(rows_of(workspace)) == 1
    assert {(path, key) for path, key, _ in endpoint.seen} == {
        ("/v1/chat/completions", f"Bearer {KEY}")
    }
    shown = capsys.readouterr()
    written = b"".join(p.read_bytes() for p in workspace.root.rglob("*") if p.is_file())
    assert KEY not in shown.out + shown.err and KEY.encode() not in written
    assert KEY_VARIABLE in shown.err and endpoint.url.encode() not in written


class Interrupted(Exception):
    pass


def test_a_rerun_goes_on_and_ends_as_one_that_was_never_interrupted(
    workspace: Workspace, endpoint: Endpoint, asker: EndpointAsker
) -> None:
    whole = QuestionsRequest(dataset="pages", name="whole", per_passage=2)
    expected = make_questions(workspace, whole, asker, lambda done, text: None)
    assert len(endpoint.seen) > 12
    wanted = whole.model_copy(update={"name": "parts"})
    calls = 0
    seen: list[float] = []

    def until_third(done: float, text: str) -> None:
        nonlocal calls
        calls += 1
        seen.append(done)
        if calls % 3 == 0:
            raise Interrupted

    for _ in range(20):
        try:
            found = make_questions(workspace, wanted, asker, until_third)
            break
        except Interrupted:
            report = json.loads((workspace.datasets / "parts" / "report.json").read_text())
            assert report["asked"] == report["outcomes"].get("kept", 0) + sum(
                count for reason, count in report["outcomes"].items() if reason != "kept"
            )
    assert calls > 9 and seen == sorted(seen)
    assert found == expected
    assert rows_of(workspace, "parts") == rows_of(workspace, "whole")


def test_a_limit_may_be_raised(workspace: Workspace, endpoint: Endpoint) -> None:
    assert questions(workspace, endpoint, "--limit", "1") == 0
    first = rows_of(workspace)
    assert len(first) == 1
    asked = len(endpoint.seen)
    assert questions(workspace, endpoint, "--limit", "1") == 0
    assert len(endpoint.seen) == asked
    assert questions(workspace, endpoint, "--limit", "9") == 0
    assert rows_of(workspace)[:1] == first and len(rows_of(workspace)) == 2


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b"nonsense", b'{"choices": []}', b'{"choices": [3]}', b'{"choices": {"0": 1}}']
)  # fmt: skip
def test_a_reply_of_something_else_is_said_plainly(
    endpoint: Endpoint, asker: EndpointAsker, body: bytes
) -> None:
    class Odd(Model):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    endpoint.RequestHandlerClass = Odd
    with pytest.raises(Unavailable, match="OpenAI"):
        asker.ask(knowing("What?"), Sampling())


def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    workspace: Workspace, endpoint: Endpoint, asker: EndpointAsker
) -> None:
    for fields, problem in [
        ({"dataset": "none", "name": "a"}, DatasetNotFound),
        ({"dataset": "pages", "name": "pages"}, InvalidRequest),
    ]:
        with pytest.raises(problem):
            make_questions(workspace, QuestionsRequest(**fields), asker, lambda done, text: None)
    with pytest.raises(ValueError, match="name"):
        QuestionsRequest(dataset="pages", name="../out")
    assert [path.name for path in workspace.datasets.iterdir()] == ["pages"]
    assert endpoint.seen == []


def in_float32(source: Source) -> LoadedModel:
    return open_model(Source(source.model, source.adapter, source.engine, "float32"))


@pytest.mark.parametrize("engine", ["torch", "mlx"])
def test_a_model_in_process_says_what_it_says_behind_the_model_server(
    tmp_path: Path, engine: str
) -> None:
    workspace = build_tiny_workspace(tmp_path, num_documents=3, max_position_embeddings=2048)
    folder = workspace.base_models / "tiny"
    inside = EngineAsker(
        "tiny",
        load_generate_engine(folder, None, engine=engine, dtype="float32"),
        Tokenizer.load(folder),
    )
    with served(create_model_server(Shelf(workspace, in_float32), GuardSettings())) as server:
        server.post("/api/model/load", json={"model_name": "tiny", "engine": engine})
        url = f"{str(server.base_url).rstrip('/')}/v1"
        greedy = Sampling(max_tokens=12, temperature=0.0, repetition_penalty=1.0, seed=1)
        with EndpointAsker(url, "base/tiny", style="text") as outside:
            for prompt in (writing("The tide <|im_end|> walks."), knowing("Who walks?")):
                assert inside.ask(prompt, greedy) == outside.ask(prompt, greedy)
        request = QuestionsRequest(dataset="notes", name="asked", max_tokens=12)
        report = make_questions(workspace, request, inside, lambda done, text: None)
        assert report["asked"] == sum(report["outcomes"].values()) == report["passages"] >= 3


def test_the_web_server_asks_the_loaded_model_as_a_job(tmp_path: Path) -> None:
    workspace = build_tiny_workspace(tmp_path, num_documents=3, max_position_embeddings=2048)
    body = {"dataset": "notes", "name": "asked", "max_tokens": 12}
    with served(create_model_server(Shelf(workspace, in_float32), GuardSettings())) as server:
        app = create_app(workspace, GuardSettings(), str(server.base_url).rstrip("/"))
        with TestClient(app, base_url="http://localhost:5002", client=("127.0.0.1", 40000)) as web:
            refused = web.post("/api/dataset/questions", json=body)
            assert (refused.status_code, refused.json()["error_code"]) == (409, "MODEL_NOT_LOADED")
            server.post("/api/model/load", json={"model_name": "tiny"})
            job_id = web.post("/api/dataset/questions", json=body).json()["job_id"]
            job = finished_job(web, job_id)
            assert (job["status"], job["kind"]) == ("completed", "questions"), job
            assert job["result"]["asked"] == job["result"]["passages"] >= 3
            assert re.search(r"\d+ of at most \d+ asked", job["message"])
            lost = web.post("/api/dataset/questions", json={**body, "dataset": "none"})
            assert lost.json()["error_code"] == "DATASET_NOT_FOUND"
    listed = json.loads((workspace.datasets / "asked" / "report.json").read_text())
    assert listed["settings"]["model"] == "base/tiny"
