"""Pushing to a hub that runs here: what arrives, what is refused, and who sees the token."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from forgellm.cli.main import main
from forgellm.errors import Conflict, HubUnavailable, InvalidRequest, ModelNotFound
from forgellm.paths import Workspace
from forgellm.publishing.push import push
from forgellm.schema.push import PushRequest

REPO = "me/my-model"
TOKEN = "hf_secret_of_this_test"
WEIGHTS = bytes(range(256)) * 4000


@dataclass
class Hub:
    """What it holds and was asked.

    Attributes:
        status: answered to everything, where set.
        is_public: whether the repository exists already, for all to see.
        stored: bytes of the large files that arrived, by their sha256.
        committed: content of every file of the last commit.
    """

    address: str = ""
    status: int = 0
    is_public: bool = False
    asked: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    committed: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({"id": REPO, "private": not self.hub.is_public, "siblings": [], "tags": []})

    def do_PUT(self) -> None:
        body = self._body()
        self.hub.stored[hashlib.sha256(body).hexdigest()] = body
        self._answer({})

    def do_POST(self) -> None:
        self.hub.tokens.add(self.headers["Authorization"])
        body = self._body()
        if self.path == "/api/repos/create":
            self.hub.asked.append(json.loads(body)["visibility"])
            return self._answer({"url": f"{self.hub.address}/{REPO}", "id": REPO})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self._answer({"files": [self._mode(file["path"]) for file in files]})
        if self.path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            return self._answer({"transfer": "basic", "objects": list(map(self._place, objects))})
        if "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
            url = f"{self.hub.address}/{REPO}/commit/{'a' * 40}"
            return self._answer({"commitUrl": url, "commitOid": "a" * 40, "success": True})
        return self._answer({})  # verification of an upload

    def _mode(self, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith((".safetensors", ".gguf", ".png")) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.hub.address}/store/{wanted['oid']}", "header": {}}
        return {**wanted, "actions": {"upload": upload}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.committed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.committed[value["path"]] = self.hub.stored[value["oid"]]

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(self.hub.status or 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    found = Hub()
    handler = type("Bound", (Handler,), {"hub": found})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    found.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", found.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # this hub speaks the older protocol
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # engines, loaded by other tests, set it
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "w")
    folder = workspace.published_models / "mine"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "config.json").write_text("{}")
    (folder / "link.json").symlink_to("/etc/hostname")
    return workspace


def ask(**fields: Any) -> PushRequest:
    return PushRequest(model_name="published/mine", repo_id=REPO, **fields)


def test_every_file_arrives_in_one_commit_of_a_private_repository(
    hub: Hub, workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    result = push(ask(), workspace, lambda done, text: told.append(text))
    assert result.commit_url == f"{hub.address}/{REPO}/commit/{'a' * 40}"
    assert hub.asked == ["private"]
    assert hub.committed == {
        "README.md": b"---\nlicense: mit\n---\n", "config.json": b"{}", "model.safetensors": WEIGHTS,
    }  # fmt: skip
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in result.model_dump_json() + "".join(told) + "".join(capfd.readouterr())
    assert any(re.match(r"model.safetensors, 1\.0 MB", text) for text in told)


def test_a_dry_run_asks_nobody(
    hub: Hub, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["models", "--workspace", str(workspace.root), "push", "published/mine"]
    assert main([*command, "--repo", REPO, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "model.safetensors" in text and "Nothing was sent" in text and "link" not in text
    assert hub.asked == [] and hub.tokens == set()


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub, workspace: Workspace) -> None:
    hub.is_public = True
    with pytest.raises(Conflict, match="public already"):
        push(ask(), workspace)
    assert hub.committed == {}
    assert push(ask(private=False), workspace).commit_url
    assert len(hub.committed) == 3


@pytest.mark.parametrize(
    ("status", "problem"), [(401, InvalidRequest), (403, InvalidRequest), (418, HubUnavailable)]
)
def test_a_refusal_says_what_to_do_and_not_the_token(
    hub: Hub, workspace: Workspace, status: int, problem: type[Exception]
) -> None:
    hub.status = status
    with pytest.raises(problem) as caught:
        push(ask(), workspace)
    assert TOKEN not in str(caught.value.to_dict())  # type: ignore[attr-defined]


def test_without_a_token_nothing_is_asked(
    hub: Hub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InvalidRequest, match="no token"):
        push(ask(), workspace)
    assert hub.tokens == set()


def test_told_to_stay_offline_it_says_what_to_unset(
    hub: Hub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubUnavailable, match="offline") as caught:
        push(ask(), workspace)
    assert "Unset HF_HUB_OFFLINE" in caught.value.suggestion
    assert hub.tokens == set()


@pytest.mark.parametrize("name", ["base/tiny", "published/none", "published", "../w", "/etc", ""])
def test_only_what_was_published_or_exported_is_pushed(workspace: Workspace, name: str) -> None:
    (workspace.base_models / "tiny").mkdir(parents=True)
    with pytest.raises(ModelNotFound):
        push(PushRequest.model_construct(model_name=name, repo_id=REPO), workspace)
