"""A real server on a free port of this machine, for tests that need streams and hang-ups."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn
from starlette.types import ASGIApp

# Only what fails waits so long: on a busy machine everything takes a multiple of its time.
PATIENCE_SECONDS = 120.0


@contextmanager
def served(app: ASGIApp) -> Iterator[httpx2.Client]:
    config = uvicorn.Config(
        app, port=0, log_config=None, proxy_headers=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def eventually(is_so: Callable[[], object]) -> None:
    """Wait until it is so; what never comes fails."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def finished_job(web: Any, job_id: str) -> dict[str, Any]:
    """A job of the web server that `web`, a client, asks, once it is over."""
    job: dict[str, Any] = {}

    def is_over() -> bool:
        job.update(web.get(f"/api/jobs/{job_id}").json()["job"])
        return job["status"] not in ("queued", "running")

    eventually(is_over)
    return job
