"""A `forgellm` command that serves, as the user starts it: a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import psutil

from serving import PATIENCE_SECONDS, eventually


class Server:
    """A `forgellm` command that serves; `url` is what it printed."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "forgellm", *arguments],
            cwd=folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        name = "Model server: " if arguments[0] == "server" else "ForgeLLM: "
        eventually(lambda: self._line(name) or self.process.poll() is not None)
        self.url = (self._line(name) or "").removeprefix(name)
        assert self.url, "".join(self.lines)
        self.client = httpx2.Client(base_url=self.url.split("?")[0], timeout=PATIENCE_SECONDS)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def _line(self, start: str) -> str | None:
        return next((line for line in self.lines if line.startswith(start)), None)

    def end(self, with_signal: signal.Signals = signal.SIGINT) -> int:
        self.client.close()
        self.process.send_signal(with_signal)
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def get(self, path: str) -> Any:
        return self.client.get(path).json()

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self.client.post(path, json=body).json()

    def model_server(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child
