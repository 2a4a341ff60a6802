"""Pulling a model from a hub: a small HTTP server here, with the hub's own replies."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save

from forgellm.catalog import download, find_model, list_models
from forgellm.catalog.hub import pull
from forgellm.catalog.remove import remove_model
from forgellm.errors import (
    Conflict,
    DiskTooSmall,
    HubUnavailable,
    InvalidRequest,
    ModelNotFound,
    UnsupportedModel,
)
from forgellm.paths import Workspace

REPO = "org/tiny-model"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
TOKEN = "hf_secret_of_this_test"
WEIGHTS = save({"a.weight": np.random.default_rng(0).standard_normal((300, 300))})
FILES = {
    "config.json": b'{"model_type": "llama", "hidden_size": 300}',
    "tokenizer.json": b'{"version": "1.0"}',
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickled",
    "tiny.Q8_0.gguf": b"gguf",
    "original/model.safetensors": b"the same again",
    "consolidated.safetensors": b"and again",
    "README.md": b"# tiny",
}
TAKEN = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "README.md"}


@dataclass
class FakeHub:
    """What the server does, and what it has seen.

    Attributes:
        cuts: how many bytes of the weights each connection carries before it breaks.
        redirect_to: base address that serves the weights instead.
        status: answered to everything, where set.
        fetched: (start, number) of the weight bytes each request was sent.
        tokens: the Authorization header of every request, by path.
    """

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    altered: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    redirect_to: str = ""
    status: int = 0
    error_code: str = ""
    ignore_range: bool = False
    fetched: list[tuple[int, int]] = field(default_factory=list)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""

    def listing(self) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = []
        for name, content in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
            if name.endswith((".safetensors", ".bin", ".gguf")):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 135}
            siblings.append(entry)
        return {"id": REPO, "sha": COMMIT, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.tokens.append((path, self.headers["Authorization"]))
        if self.hub.status:
            return self._reply(self.hub.status, b"no")
        if path == f"/api/models/{REPO}/revision/main":
            return self._reply(200, json.dumps(self.hub.listing()).encode())
        prefix = f"/{REPO}/resolve/{COMMIT}/"
        name = path.removeprefix(prefix)
        if not path.startswith(prefix) or name not in self.hub.files:
            return self._reply(404, b"absent")
        if self.hub.redirect_to and name == "model.safetensors":
            self.send_response(302)
            self.send_header("Location", self.hub.redirect_to + self.path)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self._send_file(name, self.hub.altered.get(name, self.hub.files[name]))

    def _send_file(self, name: str, content: bytes) -> None:
        start = 0
        if (wanted := self.headers["Range"]) and not self.hub.ignore_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if name == "model.safetensors":
            if self.hub.cuts:
                body = body[: self.hub.cuts.pop(0)]
                self.close_connection = True
            self.hub.fetched.append((start, len(body)))
        self.wfile.write(body)

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.hub.error_code:
            self.send_header("X-Error-Code", self.hub.error_code)
        self.end_headers()
        self.wfile.write(body)


def serve(hub: FakeHub) -> Iterator[FakeHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for served in serve(FakeHub()):
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        yield served


@pytest.fixture
def other_host() -> Iterator[FakeHub]:
    yield from serve(FakeHub())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(download, "RETRY_SECONDS", (0.0, 0.0))
    return tmp_path / "hub"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def repo_folder(cache: Path) -> Path:
    return cache / "models--org--tiny-model"


def assert_nothing_visible(cache: Path, workspace: Workspace) -> None:
    assert list_models(workspace) == []
    assert not list(repo_folder(cache).glob("snapshots/*"))
    assert not list(repo_folder(cache).glob("refs/*"))
    with pytest.raises(ModelNotFound):
        find_model(REPO, workspace)


def test_pull_brings_safe_files_into_the_standard_cache(
    hub: FakeHub, cache: Path, workspace: Workspace
) -> None:
    seen: list[tuple[int, int]] = []
    snapshot = pull(REPO, on_progress=lambda done, total: seen.append((done, total)))
    assert {path.name for path in snapshot.iterdir()} == TAKEN
    for name in TAKEN:
        assert (snapshot / name).read_bytes() == FILES[name]
        assert (snapshot / name).is_symlink()
    assert (repo_folder(cache) / "refs" / "main").read_text() == COMMIT
    total = sum(len(FILES[name]) for name in TAKEN)
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert find_model(REPO, workspace).path == snapshot
    theirs = huggingface_hub.snapshot_download(REPO, cache_dir=cache, local_files_only=True)
    assert Path(theirs) == snapshot
    assert sorted(p.name for p in repo_folder(cache).iterdir()) == ["blobs", "refs", "snapshots"]


def test_second_pull_fetches_nothing_again(hub: FakeHub) -> None:
    pull(REPO)
    pull(REPO)
    assert hub.fetched == [(0, len(WEIGHTS))]


@pytest.mark.parametrize("cuts", [[1], [0, 7], [1000, 100_000, 65_536], [len(WEIGHTS) - 1]])
def test_broken_connections_continue_without_fetching_bytes_twice(
    hub: FakeHub, cuts: list[int]
) -> None:
    hub.cuts = list(cuts)
    snapshot = pull(REPO)
    assert (snapshot / "model.safetensors").read_bytes() == WEIGHTS
    position = 0
    for start, count in hub.fetched:
        assert start == position
        position += count
    assert position == len(WEIGHTS)


def test_a_later_pull_continues_an_interrupted_one(
    hub: FakeHub, cache: Path, workspace: Workspace
) -> None:
    hub.cuts = [50_000, 0, 0, 0]
    with pytest.raises(HubUnavailable) as caught:
        pull(REPO)
    assert "continues" in caught.value.suggestion
    assert_nothing_visible(cache, workspace)
    (partial,) = repo_folder(cache).glob("blobs/*.incomplete")
    assert partial.read_bytes() == WEIGHTS[:50_000]
    seen: list[int] = []
    snapshot = pull(REPO, on_progress=lambda done, total: seen.append(done))
    assert seen[0] == 50_000 + sum(len(FILES[name]) for name in TAKEN) - len(WEIGHTS)
    assert (snapshot / "model.safetensors").read_bytes() == WEIGHTS
    assert sum(count for _, count in hub.fetched) == len(WEIGHTS)
    assert not list(repo_folder(cache).glob("blobs/*.incomplete"))


def test_a_server_without_ranges_is_read_from_the_start(hub: FakeHub) -> None:
    hub.cuts, hub.ignore_range = [50_000], True
    seen: list[int] = []
    snapshot = pull(REPO, on_progress=lambda done, total: seen.append(done))
    assert (snapshot / "model.safetensors").read_bytes() == WEIGHTS
    assert seen[-1] == sum(len(FILES[name]) for name in TAKEN)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_another_hash_is_refused_and_not_visible(
    hub: FakeHub, cache: Path, workspace: Workspace, name: str
) -> None:
    content = bytearray(FILES[name])
    content[len(content) // 2] ^= 1
    hub.altered[name] = bytes(content)
    with pytest.raises(HubUnavailable, match="damaged"):
        pull(REPO)
    assert_nothing_visible(cache, workspace)
    hub.altered.clear()
    assert (pull(REPO) / name).read_bytes() == FILES[name]


def test_a_file_longer_than_stated_is_cut_off_and_judged_by_its_hash(hub: FakeHub) -> None:
    hub.altered["config.json"] = FILES["config.json"] + b" " * 5_000_000
    assert (pull(REPO) / "config.json").read_bytes() == FILES["config.json"]


def test_a_spoilt_part_of_an_earlier_download_is_noticed(hub: FakeHub, cache: Path) -> None:
    hub.cuts = [50_000, 0, 0, 0]
    with pytest.raises(HubUnavailable):
        pull(REPO)
    (partial,) = repo_folder(cache).glob("blobs/*.incomplete")
    partial.write_bytes(b"\0" * 50_000)
    with pytest.raises(HubUnavailable, match="damaged"):
        pull(REPO)
    assert (pull(REPO) / "model.safetensors").read_bytes() == WEIGHTS


def test_the_token_stays_with_the_hub_on_a_redirect(
    hub: FakeHub, other_host: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    hub.redirect_to = other_host.address
    other_host.cuts = [1000]
    snapshot = pull(REPO)
    assert (snapshot / "model.safetensors").read_bytes() == WEIGHTS
    assert {token for _, token in hub.tokens} == {f"Bearer {TOKEN}"}
    assert other_host.fetched == [(0, 1000), (1000, len(WEIGHTS) - 1000)]
    assert {token for _, token in other_host.tokens} == {None}
    assert TOKEN not in caplog.text


def test_the_token_file_is_used_where_the_variable_is_not_set(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    pull(REPO)
    assert {token for _, token in hub.tokens} == {None}
    (tmp_path / "token").write_text("from_file\n")
    pull(REPO)
    assert hub.tokens[-1][1] == "Bearer from_file"


@pytest.mark.parametrize(
    ("status", "error_code", "expected"),
    [
        (404, "", ModelNotFound),
        (401, "RepoNotFound", ModelNotFound),
        (401, "", InvalidRequest),
        (403, "GatedRepo", InvalidRequest),
        (429, "", HubUnavailable),
        (503, "", HubUnavailable),
        (418, "", HubUnavailable),
    ],
)
def test_refusals_of_the_hub_have_names_and_a_way_out(
    hub: FakeHub, status: int, error_code: str, expected: type[Exception]
) -> None:
    hub.status, hub.error_code = status, error_code
    with pytest.raises(expected) as caught:
        pull(REPO)
    assert TOKEN not in str(caught.value.to_dict())  # type: ignore[attr-defined]
    if status != 418:
        assert caught.value.suggestion  # type: ignore[attr-defined]


def test_no_hub_at_all_is_hub_unavailable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnavailable):
        pull(REPO)


def test_a_repository_without_safetensors_is_refused_before_anything_is_fetched(
    hub: FakeHub, cache: Path
) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(UnsupportedModel):
        pull(REPO)
    assert not cache.exists()


def test_a_listing_cannot_place_files_elsewhere(hub: FakeHub, tmp_path: Path) -> None:
    hub.files |= {"../../../evil.json": b"{}", "/evil.json": b"{}", "a/../../evil.json": b"{}"}
    snapshot = pull(REPO)
    assert {path.name for path in snapshot.iterdir()} == TAKEN
    assert not list(tmp_path.rglob("evil.json"))


@pytest.mark.parametrize("repo", ["../x", "a/b/c", "http://127.0.0.1/x", "a@b", "", "a--b", "a/.b"])
def test_names_that_are_no_hub_ids_never_reach_the_network(hub: FakeHub, repo: str) -> None:
    with pytest.raises(InvalidRequest):
        pull(repo)
    with pytest.raises(InvalidRequest):
        pull(REPO, revision="../../x")
    assert hub.tokens == []


def test_too_little_disk_is_said_before_the_download(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("forgellm.catalog.hub.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DiskTooSmall):
        pull(REPO)
    assert hub.fetched == []


def test_two_downloads_of_one_file_do_not_mix(hub: FakeHub, cache: Path) -> None:
    import fcntl

    hub.cuts = [1000, 0, 0, 0]
    with pytest.raises(HubUnavailable):
        pull(REPO)
    (partial,) = repo_folder(cache).glob("blobs/*.incomplete")
    with partial.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Conflict):
            pull(REPO)
    assert (pull(REPO) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_pulled_or_half_pulled_model_can_be_removed(
    hub: FakeHub, cache: Path, workspace: Workspace
) -> None:
    pull(REPO)
    assert remove_model(REPO, workspace, []) == sum(len(FILES[name]) for name in TAKEN) + len(
        COMMIT
    )
    assert list(cache.iterdir()) == []
    hub.cuts = [1000, 0, 0, 0]
    with pytest.raises(HubUnavailable):
        pull(REPO)
    assert remove_model(REPO, workspace, []) >= 1000
    assert list(cache.iterdir()) == []
