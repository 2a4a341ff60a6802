"""Live events over Socket.IO: runs, the loaded model, and jobs.

Everything said about a run is read from its folder, so a restarted server goes on where the last
one ended, and a run started by the command line is followed like any other.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
import socketio
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from forgellm.envelope import http_error_reply
from forgellm.errors import ForgeError, InvalidRequest
from forgellm.guard import GuardSettings, parse_origin
from forgellm.paths import Workspace
from forgellm.schema.events import ModelUpdate, SubscribeRequest
from forgellm.schema.recipe import name_problems
from forgellm.web.api.model_proxy import ModelServer
from forgellm.web.outbox import Outbox
from forgellm.web.run_followers import RunFollowers

_TICK_SECONDS = 0.1
_MODEL_SECONDS = 1.0
_MAX_MESSAGE_BYTES = 1 << 16
_log = logging.getLogger(__name__)


class OrJson:
    """orjson as the `json` module that python-socketio asks for: NaN leaves as null."""

    JSONDecodeError = orjson.JSONDecodeError

    @staticmethod
    def dumps(value: Any, **_: Any) -> str:
        return orjson.dumps(value).decode()

    @staticmethod
    def loads(text: str | bytes, **_: Any) -> Any:
        return orjson.loads(text)


class LiveEvents:
    """The Socket.IO server of one workspace; `app` is to be mounted at `/socket.io`."""

    def __init__(
        self, workspace: Workspace, settings: GuardSettings, model_server: ModelServer
    ) -> None:
        self._server = socketio.AsyncServer(
            async_mode="asgi",
            json=OrJson,
            cors_allowed_origins=_origin_check(settings),
            cors_credentials=False,
            # One event of a client after the other: a flood of them waits in its connection.
            async_handlers=False,
            max_http_buffer_size=_MAX_MESSAGE_BYTES,
        )
        self.app: ASGIApp = _HandshakeCheck(socketio.ASGIApp(self._server, socketio_path=None))
        self._model_server = model_server
        self._outbox = Outbox(self._server)
        self._followers = RunFollowers(workspace, self._outbox)
        self._model_told: dict[str, dict[str, Any]] = {}  # client -> what it knows
        self._jobs: dict[str, dict[str, Any]] = {}
        self._jobs_lock = threading.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._server.on("connect", self._on_connect)
        self._server.on("disconnect", self._on_disconnect)
        self._server.on("subscribe_training", self._on_subscribe)
        self._server.on("unsubscribe_training", self._on_unsubscribe)

    def emit_job(self, job: dict[str, Any]) -> None:
        """Tell every client of a job, named by `job_id`. From any thread and at any rate."""
        with self._jobs_lock:
            self._jobs[job["job_id"]] = job

    def start(self) -> None:
        """Must be called on the server's event loop."""
        work = (
            self._outbox.run(),
            _repeat(_TICK_SECONDS, self._tick),
            _repeat(_MODEL_SECONDS, self._watch_model),
        )
        self._tasks = [asyncio.create_task(coroutine) for coroutine in work]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.shutdown()

    async def _on_connect(self, sid: str, environ: dict[str, Any], auth: Any) -> None:
        self._outbox.open(sid)

    async def _on_disconnect(self, sid: str, reason: str) -> None:
        self._outbox.close(sid)
        self._followers.leave(sid)
        self._model_told.pop(sid, None)

    async def _on_subscribe(self, sid: str, data: Any = None, *_: Any) -> dict[str, Any]:
        try:
            training_id = await self._followers.join(sid, _parse_request(data))
        except ForgeError as error:
            return error.to_dict()
        except Exception:
            _log.exception("A subscription failed")
            return ForgeError("Something went wrong inside ForgeLLM").to_dict()
        return {"success": True, "training_id": training_id}

    async def _on_unsubscribe(self, sid: str, data: Any = None, *_: Any) -> dict[str, Any]:
        try:
            training_id = _parse_request(data).training_id
        except ForgeError as error:
            return error.to_dict()
        self._followers.leave(sid, training_id)
        return {"success": True, "training_id": training_id}

    async def _tick(self) -> None:
        await self._followers.tick()
        with self._jobs_lock:
            jobs, self._jobs = self._jobs, {}
        for job_id, job in jobs.items():
            clients = self._outbox.clients
            await self._outbox.offer(clients, "job_update", job, ("job_update", job_id))
        await self._outbox.part_with_stuck()

    async def _watch_model(self) -> None:
        """Ask the model server, while someone listens; who has just come is told too."""
        if not self._outbox.clients:
            return
        status = await self._model_server.status()
        update = ModelUpdate.model_validate({**(status or {}), "running": status is not None})
        news = update.model_dump(mode="json")
        behind = [sid for sid in self._outbox.clients if self._model_told.get(sid) != news]
        self._model_told |= dict.fromkeys(behind, news)
        await self._outbox.offer(behind, update.name, news, update.name)


class _HandshakeCheck:
    """A GET is a handshake here, so the pages of other sites may not even send that."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        site = headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") and "origin" not in headers:
            message = "Pages of other sites may not use this server"
            await http_error_reply(403, "CROSS_ORIGIN", message)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except (ValueError, LookupError):
            if scope["type"] == "http":
                raise
            # Engine.IO trips over messages that are none; the connection then just ends.
            _log.debug("A client broke the Socket.IO protocol", exc_info=True)


def _origin_check(settings: GuardSettings) -> Callable[[str | None, dict[str, Any]], bool]:
    """The guard's rule once more: without one, python-socketio would trust any `Host`."""
    allowed = {parse_origin(origin) for origin in settings.allowed_origins}

    def is_allowed(origin: str | None, environ: dict[str, Any]) -> bool:
        given = parse_origin(origin or "")
        host = environ.get("HTTP_HOST", "")
        own = {parse_origin(f"{scheme}://{host}") for scheme in ("http", "https")}
        return given is not None and given in own | allowed

    return is_allowed


def _parse_request(data: Any) -> SubscribeRequest:
    if not isinstance(data, dict | None):
        raise InvalidRequest('Send an object, such as {"training_id": "..."}')
    try:
        return SubscribeRequest.model_validate(data or {})
    except ValidationError as error:
        problems = name_problems(error.errors())
        text = "; ".join(f"{problem['field']}: {problem['message']}" for problem in problems)
        raise InvalidRequest(text, details={"problems": problems}) from None


async def _repeat(seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    last_problem = ""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
            last_problem = ""
        except Exception as problem:  # whatever it is, the next round may work
            if str(problem) != last_problem:
                _log.exception("Live events could not be sent")
            last_problem = str(problem)
