"""The JavaScript Socket.IO client in Node follows a real run across the death of the web server."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forgellm.paths import Workspace
from forgellm.runs.metrics import read_lines
from forgellm.runs.store import active_run, find_run
from forgellm.supervisor import stop_training
from forgellm.web.pages import STATIC
from serving import PATIENCE_SECONDS, eventually
from tiny_workspace import build_tiny_workspace
from web_process import WebServer

NODE, NPM = shutil.which("node"), shutil.which("npm")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js")

# Keeps the number of the last update it saw, and asks for what came after it when it is back.
FOLLOW = """
const [library, url, trainingId] = process.argv.slice(2);
const {io} = require(library);
const say = (...words) => console.log(JSON.stringify(words));
// The browsers' bundle polls with what Node has not.
const transports = library.endsWith('.min.js') ? ['websocket'] : ['polling', 'websocket'];
const socket = io(url, {transports, reconnectionDelay: 50, reconnectionDelayMax: 200});
let seen = 0;
socket.on('connect', () => {
  say('connect');
  socket.emit('subscribe_training', {training_id: trainingId, since_seq: seen});
});
socket.on('disconnect', () => say('disconnect'));
socket.on('training_update', (update) => {
  seen = update.seq;
  say('update', update);
});
socket.on('training_complete', (done) => {
  say('complete', done);
  socket.close();
});
"""


class Follower:
    """The script in Node, and what it said so far."""

    def __init__(self, folder: Path, library: str, url: str, training_id: str) -> None:
        assert NODE is not None
        script = folder / "follow.js"
        script.write_text(FOLLOW)
        self.process = subprocess.Popen(
            [NODE, "--experimental-websocket", str(script), library, url, training_id],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[list[Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.said.extend(json.loads(line) for line in self.process.stdout)

    def seqs(self) -> list[int]:
        """Numbers of the lines of metrics; an update of a new phase repeats one, or says 0."""
        seqs = [words[1]["seq"] for words in self.said if words[0] == "update"]
        return [seq for seq, last in zip(seqs, [0, *seqs], strict=False) if seq != last]

    def times(self, word: str) -> int:
        return sum(words[0] == word for words in self.said)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = build_tiny_workspace(tmp_path / "workspace")
    yield workspace
    if active_run(workspace):
        stop_training(workspace)
        eventually(lambda: active_run(workspace) is None)


@pytest.fixture
def web(workspace: Workspace) -> Iterator[WebServer]:
    server = WebServer(workspace)
    yield server
    if server.process.poll() is None:
        server.end()


@pytest.fixture(params=["vendored", pytest.param("npm", marks=pytest.mark.slow)])
def library(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The bundle that browsers get, or the package as its users install it."""
    if request.param == "vendored":
        return str(STATIC / "vendor" / "socket.io.min.js")
    if NPM is None:
        pytest.skip("needs npm")
    version = json.loads((STATIC / "vendor" / "vendor.json").read_text())
    wanted = f"socket.io-client@{version['socket.io.min.js']['version']}"
    subprocess.run(
        [NPM, "install", "--no-audit", "--no-fund", wanted],
        cwd=tmp_path, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return "socket.io-client"


def test_javascript_client_misses_nothing_across_a_kill_of_the_web_server(
    workspace: Workspace, web: WebServer, tmp_path: Path, library: str
) -> None:
    begun = web.begin_training(max_iterations=300)
    folder = find_run(workspace, begun["training_id"]).folder
    follower = Follower(tmp_path, library, web.url, begun["training_id"])
    try:
        eventually(lambda: max(follower.seqs(), default=0) > 0)
        web.end(signal.SIGKILL)
        eventually(lambda: follower.times("disconnect"))
        before = follower.seqs()
        eventually(lambda: read_lines(folder)[0][-1].seq > before[-1] + 20)
        written = read_lines(folder)[0][-1].seq
        web.start()
        assert follower.process.wait(3 * PATIENCE_SECONDS) == 0
    finally:
        follower.end()
    assert follower.times("connect") == 2
    seqs = follower.seqs()
    assert seqs == sorted(set(seqs))  # live, a fast run's updates are thinned; back-fill is whole
    missed = seqs[len(before) :]
    assert missed[: written - before[-1]] == list(range(before[-1] + 1, written + 1))
    *_, last, done, _ = follower.said  # the client then says goodbye itself
    assert (last[1]["iteration"], last[1]["seq"]) == (300, read_lines(folder)[0][-1].seq)
    assert done[0] == "complete" and done[1]["output_dir"] == begun["output_dir"]
    assert (done[1]["stopped"], done[1]["final_iteration"]) == (False, 300)
