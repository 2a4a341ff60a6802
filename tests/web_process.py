"""`forgellm web` as a process of its own, which tests kill and start again."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import closing
from typing import Any

import httpx2

from forgellm.paths import Workspace
from serving import PATIENCE_SECONDS, eventually

RECIPE = {
    "model_name": "tiny", "dataset": "notes", "dtype": "float32", "batch_size": 2,
    "max_seq_length": 64, "save_every": 100, "data_mixture_ratio": 1.0, "val_batches": 1,
}  # fmt: skip


class WebServer:
    """Keeps its port, so that clients find it again."""

    def __init__(self, workspace: Workspace) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._workspace = workspace
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "forgellm", "web", "--port", str(self.port)],
            cwd=self._workspace.root,
            stdout=subprocess.DEVNULL,
        )
        eventually(self._answers)

    def end(self, with_signal: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(with_signal)
        self.process.wait(PATIENCE_SECONDS)

    def begin_training(self, **changes: Any) -> dict[str, Any]:
        reply = httpx2.post(f"{self.url}/api/training/start", json=RECIPE | changes)
        begun: dict[str, Any] = reply.json()
        assert begun["success"] is True, begun
        return begun

    def _answers(self) -> bool:
        assert self.process.poll() is None, "the web server ended"
        try:
            return httpx2.get(f"{self.url}/api/health").status_code == 200
        except httpx2.HTTPError:
            return False
