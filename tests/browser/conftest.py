"""The real page in the real Chromium, on real servers with a tiny model."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from forgellm.paths import Workspace
from serving import PATIENCE_SECONDS, eventually
from tiny_workspace import build_tiny_workspace, write_conversations

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TINY_RECIPE: dict[str, Any] = {
    "model_name": "base/tiny", "dataset": "notes", "dtype": "float32", "batch_size": 2, "max_seq_length": 64,
    "max_iterations": 12, "save_every": 4, "data_mixture_ratio": 1.0, "val_batches": 1, "learning_rate": 0.01,
    "sample_prompts": ["After tide?"],
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"))


class Servers:
    """`forgellm start` on a workspace. The ports stay, so that a page finds it again."""

    def __init__(self, workspace: Workspace, *flags: str) -> None:
        self.workspace = workspace
        self._flags = flags
        self.web_port, self.server_port = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{self.web_port}"
        self.start()

    def start(self) -> None:
        ports = ["--web-port", str(self.web_port), "--server-port", str(self.server_port)]
        command = [
            sys.executable,
            "-m",
            "forgellm",
            "start",
            "--workspace",
            str(self.workspace.root),
        ]
        command += [*ports, *self._flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        eventually(self._answers)

    def end(self, with_signal: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(with_signal)
        self.process.wait(PATIENCE_SECONDS)

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any] = httpx2.post(self.url + route, json=body, timeout=60).json()
        assert reply["success"], reply
        return reply

    def get(self, route: str) -> dict[str, Any]:
        reply: dict[str, Any] = httpx2.get(self.url + route, timeout=60).json()
        assert reply["success"], reply
        return reply

    def train(self, **changes: Any) -> str:
        """A whole run; its name."""
        begun = self.post("/api/training/start", TINY_RECIPE | changes)
        route = f"/api/runs/{begun['training_id']}"
        eventually(lambda: self.get(route)["state"]["phase"] in ("completed", "failed"))
        run = self.get(route)
        assert run["state"]["phase"] == "completed", run["state"]
        return str(run["run"]["name"])

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the servers ended"
        try:
            health = httpx2.get(f"{self.url}/api/health").json()
        except httpx2.HTTPError:
            return False
        return bool(health["components"]["model_server"] == "running")


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


def tiny(root: Path) -> Workspace:
    workspace = build_tiny_workspace(root)
    write_conversations(workspace, "chats", 40)
    return workspace


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """With two finished runs, shared by the tests that change nothing of them."""
    started = Servers(tiny(tmp_path_factory.mktemp("page")))
    started.train()
    started.train(learning_rate=0.003)
    yield started
    started.end()


@pytest.fixture(scope="session")
def browser(playwright: Any) -> Iterator[Any]:
    launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield launched
    launched.close()


class Watched:
    """A tab whose errors, refusals and requests to elsewhere are noted."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(base_url=url, **options)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", self._asked)

    def go(self, address: str) -> None:
        self.page.goto(self.url + address)

    def _heard(self, message: Any) -> None:
        # What the browser says of a refused request or a server that is gone is no fault of the page.
        own = ("Failed to load resource", "WebSocket connection to")
        if message.type == "error" and not message.text.startswith(own):
            self.errors.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.foreign.append(request.url)


@pytest.fixture
def tab(browser: Any, servers: Servers) -> Iterator[Watched]:
    watched = Watched(browser, servers.url, viewport={"width": 1360, "height": 900})
    yield watched
    watched.context.close()
    assert watched.errors == [] and watched.foreign == []
