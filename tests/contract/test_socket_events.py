"""Live events on real run folders, with a real Socket.IO client and server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import socketio
import websocket
from starlette.applications import Starlette
from starlette.routing import Mount

from forgellm.errors import OutOfMemory
from forgellm.guard import GuardSettings
from forgellm.paths import Workspace
from forgellm.runs.lock import RunLock
from forgellm.runs.metrics import MetricsWriter
from forgellm.runs.store import Run, create_run
from forgellm.schema.recipe import parse_recipe
from forgellm.schema.run import RunState
from forgellm.web.api.model_proxy import ModelServer
from forgellm.web.app import create_app
from forgellm.web.events import LiveEvents
from forgellm.web.jobs import Job, JobRunner
from forgellm.web.outbox import MAX_PENDING_EVENTS, MAX_QUEUED_PACKETS, Outbox
from forgellm.web.pages import STATIC
from forgellm.web.run_feed import MAX_BACKFILL
from serving import eventually, served
from socket_listener import Listener, async_eventually, listening

RECIPE = {"model_name": "tiny", "dataset": "notes", "max_iterations": 500}
UPDATE_OF_THE_SPEC = {
    "iteration", "training_loss", "validation_loss", "learning_rate", "tokens_per_second",
    "memory_usage_gb", "progress_percentage", "eta_minutes",
}  # fmt: skip
COMPLETE_OF_THE_SPEC = {
    "success", "final_iteration", "final_loss", "training_time_minutes", "best_checkpoints",
    "output_dir",
}  # fmt: skip
ERROR_OF_THE_SPEC = {"error", "iteration", "suggestion"}
COMMON = {"training_id", "seq", "phase", "timestamp"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def web(workspace: Workspace) -> Iterator[httpx2.Client]:
    with served(create_app(workspace, GuardSettings(), "http://127.0.0.1:1")) as client:
        yield client


@pytest.fixture
def url(web: httpx2.Client) -> str:
    return str(web.base_url)


class Trainer:
    """Writes a run's folder as the trainer does, when the test says so."""

    def __init__(self, workspace: Workspace) -> None:
        self.run = create_run(workspace, parse_recipe(RECIPE), 128)
        self.training_id = self.run.record().training_id
        self._lock = RunLock(self.run.folder).acquire()
        self._metrics = MetricsWriter(self.run.folder)
        self.state = RunState(phase="training", eta_minutes=42, training_seconds=90)
        self.run.write_state(self.state)

    def report(self, iteration: int, loss: float = 2.5, **figures: Any) -> None:
        self._metrics.append(
            iteration=iteration,
            training_loss=loss,
            learning_rate=4.8e-05,
            tokens_per_second=245.2,
            memory_usage_gb=12.8,
            **figures,
        )
        self.state.iteration = iteration

    def end(self, phase: str, **changes: Any) -> None:
        self.run.write_state(self.state.model_copy(update={"phase": phase, **changes}))
        self._metrics.close()
        self._lock.release()


@contextmanager
def _trainer(workspace: Workspace) -> Iterator[Trainer]:
    trainer = Trainer(workspace)
    yield trainer
    if trainer.run.is_alive():
        trainer.end("stopped")


@pytest.fixture
def trainer(workspace: Workspace) -> Iterator[Trainer]:
    with _trainer(workspace) as trainer:
        yield trainer


def run_async(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_subscriber_first_gets_the_latest_update(trainer: Trainer, url: str) -> None:
    trainer.report(155, validation_loss=2.456)
    trainer.report(156, 2.345)

    async def check() -> None:
        async with await listening(url) as listener:
            answer = await listener.subscribe(training_id=trainer.training_id)
            assert answer == {"success": True, "training_id": trainer.training_id}
            update = await listener.first("training_update")
            assert set(update) >= UPDATE_OF_THE_SPEC | COMMON
            assert {name: update[name] for name in UPDATE_OF_THE_SPEC} == {
                "iteration": 156,
                "training_loss": 2.345,
                "validation_loss": 2.456,
                "learning_rate": 4.8e-05,
                "tokens_per_second": 245.2,
                "memory_usage_gb": 12.8,
                "progress_percentage": 31.2,
                "eta_minutes": 42,
            }
            assert (update["seq"], update["phase"]) == (2, "training")
            trainer.report(157)
            await async_eventually(lambda: listener.seqs() == [2, 3])

    run_async(check())


def test_completed_run_ends_with_the_fields_of_the_spec(trainer: Trainer, url: str) -> None:
    async def check() -> None:
        async with await listening(url) as listener, await listening(url) as late:
            await listener.subscribe()
            trainer.report(500, 2.123)
            trainer.end("completed")
            done = await listener.first("training_complete")
            assert set(done) >= COMPLETE_OF_THE_SPEC | COMMON
            assert (done["final_iteration"], done["final_loss"]) == (500, 2.123)
            assert (done["success"], done["stopped"], done["best_checkpoints"]) == (True, False, [])
            assert done["training_time_minutes"] == 1.5
            assert done["output_dir"] == trainer.run.output_dir
            assert listener.heard[-1][0] == "training_complete"
            assert listener.seqs()[-1] == 1  # the last report came before the end
            await late.subscribe()
            assert await late.first("training_complete") == done
            assert not late.all_of("training_update")

    run_async(check())


def test_stopped_run_ends_as_complete_and_stopped(trainer: Trainer, url: str) -> None:
    async def check() -> None:
        async with await listening(url) as listener:
            await listener.subscribe()
            trainer.end("stopped")
            assert (await listener.first("training_complete"))["stopped"] is True

    run_async(check())


def test_error_carries_the_suggestion_of_the_error_itself(trainer: Trainer, url: str) -> None:
    error = OutOfMemory("The GPU ran out of memory.", suggestion="batch_size 1 would fit.")

    async def check() -> None:
        async with await listening(url) as listener:
            await listener.subscribe()
            trainer.report(156)
            trainer.end("failed", error=error.to_dict())
            failed = await listener.first("training_error")
            assert set(failed) >= ERROR_OF_THE_SPEC | COMMON | {"error_code"}
            assert (failed["error"], failed["error_code"]) == (error.message, "OUT_OF_MEMORY")
            assert (failed["iteration"], failed["suggestion"]) == (156, "batch_size 1 would fit.")

    run_async(check())


def test_vanished_trainer_is_an_error_that_says_how_to_go_on(trainer: Trainer, url: str) -> None:
    async def check() -> None:
        async with await listening(url) as listener:
            await listener.subscribe()
            trainer.end("training")  # it lets go of the lock without a final state
            failed = await listener.first("training_error")
            assert (failed["error_code"], failed["phase"]) == ("WORKER_DIED", "interrupted")
            assert "Resume" in failed["suggestion"]

    run_async(check())


def test_resumed_run_goes_on_after_its_end(trainer: Trainer, url: str) -> None:
    async def check() -> None:
        async with await listening(url) as listener:
            await listener.subscribe()
            trainer.report(10)
            trainer.end("stopped")
            await listener.first("training_complete")
            with RunLock(trainer.run.folder).acquire(), MetricsWriter(trainer.run.folder) as log:
                trainer.run.write_state(RunState(phase="training", iteration=10))
                log.append(iteration=11, training_loss=2.0, learning_rate=1e-5)
                await async_eventually(lambda: 2 in listener.seqs())
                trainer.run.write_state(RunState(phase="completed", iteration=11))
            await async_eventually(lambda: len(listener.all_of("training_complete")) == 2)

    run_async(check())


def test_missed_updates_come_before_the_live_ones(trainer: Trainer, url: str) -> None:
    for iteration in range(1, 101):
        trainer.report(iteration, float(iteration))

    async def check() -> None:
        async with await listening(url) as listener:
            await listener.subscribe(since_seq=40)
            await async_eventually(lambda: 100 in listener.seqs())
            assert listener.seqs() == list(range(41, 101))
            losses = [update["training_loss"] for update in listener.all_of("training_update")]
            assert losses == listener.seqs()
            trainer.report(101)
            await async_eventually(lambda: listener.seqs()[-1] == 101)

    run_async(check())


def test_many_missed_updates_are_thinned(trainer: Trainer, url: str) -> None:
    for iteration in range(1, 3 * MAX_BACKFILL):
        trainer.report(iteration)

    async def check() -> None:
        async with await listening(url) as listener:
            await listener.subscribe(since_seq=0)
            await async_eventually(lambda: listener.seqs()[-1:] == [3 * MAX_BACKFILL - 1])
            seqs = listener.seqs()
            assert MAX_BACKFILL // 2 < len(seqs) <= MAX_BACKFILL + 1
            assert seqs == sorted(set(seqs)) and seqs[0] == 1

    run_async(check())


def test_fast_run_is_thinned_but_its_last_update_and_its_end_arrive(
    trainer: Trainer, url: str
) -> None:
    async def check() -> None:
        async with await listening(url) as listener:
            await listener.subscribe()
            for iteration in range(1, 2001):
                trainer.report(iteration)
                if iteration % 50 == 0:
                    await asyncio.sleep(0.01)
            await async_eventually(lambda: 2000 in listener.seqs())
            trainer.end("completed")
            await listener.first("training_complete")
            assert listener.seqs() == sorted(set(listener.seqs()))
            assert len(listener.seqs()) < 200

    run_async(check())


def test_without_an_id_the_next_run_is_followed_too(workspace: Workspace, url: str) -> None:
    async def check() -> None:
        async with await listening(url) as listener:
            assert await listener.subscribe() == {"success": True, "training_id": None}
            for number in (1, 2):
                with _trainer(workspace) as trainer:
                    trainer.report(1)
                    await async_eventually(
                        lambda: any(
                            update["training_id"] == trainer.training_id
                            for update in listener.all_of("training_update")
                        )
                    )
                    trainer.end("completed")
                await async_eventually(
                    lambda: len(listener.all_of("training_complete")) == number  # noqa: B023
                )

    run_async(check())


def test_events_go_only_to_those_who_asked(workspace: Workspace, url: str) -> None:
    async def check() -> None:
        async with await listening(url) as first, await listening(url) as nobody:
            with _trainer(workspace) as trainer:
                await first.subscribe(training_id=trainer.training_id)
                trainer.report(1)
                await async_eventually(lambda: 1 in first.seqs())
                answer = await first.client.call("unsubscribe_training", {})
                assert answer["success"] is True
                trainer.report(2)
                trainer.end("completed")
            assert {name for name, _ in nobody.heard} <= {"model_update"}
            # What was sent of the end would have come before it reaches the next to ask.
            await nobody.subscribe(training_id=trainer.training_id)
            await nobody.first("training_complete")
            assert not first.all_of("training_complete") and 2 not in first.seqs()

    run_async(check())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"training_id": "nope"}, "RUN_NOT_FOUND"),
        ({"training_id": "../../etc"}, "RUN_NOT_FOUND"),
        ({"training_id": 3}, "INVALID_REQUEST"),
        ({"training_id": ""}, "INVALID_REQUEST"),
        ({"since_seq": -1}, "INVALID_REQUEST"),
        ({"wrong": 1}, "INVALID_REQUEST"),
        (["nope"], "INVALID_REQUEST"),
        ("nope", "INVALID_REQUEST"),
    ],
)
def test_subscription_that_cannot_be_is_answered_with_the_envelope(
    data: Any, code: str, url: str
) -> None:
    async def check() -> None:
        async with await listening(url) as listener:
            answer = await listener.client.call("subscribe_training", data)
            assert set(answer) == {"success", "error", "error_code", "details", "suggestion"}
            assert (answer["success"], answer["error_code"]) == (False, code)

    run_async(check())


def test_figure_that_is_not_finite_leaves_as_null(trainer: Trainer, url: str) -> None:
    trainer.report(1, 3.0)
    trainer.report(2, float("nan"))

    async def check() -> None:
        async with await listening(url) as listener:
            await listener.subscribe()
            update = await listener.first("training_update")
            assert (update["iteration"], update["training_loss"]) == (2, None)

    run_async(check())


def test_jobs_and_the_model_are_told_to_everyone(workspace: Workspace) -> None:
    events = LiveEvents(workspace, GuardSettings(), ModelServer("http://127.0.0.1:1"))
    runner = JobRunner()
    runner.listeners.append(events.emit_job)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        events.start()
        yield
        await events.close()

    def work(job: Job) -> dict[str, Any]:
        job.report(0.5, "half of it")
        return {"loss": float("nan")}

    async def check(url: str) -> None:
        async with await listening(url) as listener, await listening(url) as other:
            model = await listener.first("model_update")
            assert (model["running"], model["loaded"]) == (False, False)
            job = runner.submit("publish_checkpoint", "x", work, "heavy")
            for each in (listener, other):
                await async_eventually(
                    lambda: [j["status"] for j in each.all_of("job_update")][-1:] == ["completed"]  # noqa: B023
                )
                last = each.all_of("job_update")[-1]
                assert (last["job_id"], last["result"]) == (job.job_id, {"loss": None})

    with served(Starlette(routes=[Mount("/socket.io", events.app)], lifespan=lifespan)) as client:
        run_async(check(str(client.base_url)))


FOREIGN: list[dict[str, str]] = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"host": "evil.example"},
    {"sec-fetch-site": "cross-site"},
]


@pytest.mark.parametrize("headers", [*FOREIGN, {"sec-fetch-site": "same-site"}])
def test_polling_from_another_site_is_refused(headers: dict[str, str], web: httpx2.Client) -> None:
    for reply in (
        web.get("/socket.io/?EIO=4&transport=polling", headers=headers),
        web.post("/socket.io/?EIO=4&transport=polling&sid=x", headers=headers, content="40"),
    ):
        assert reply.status_code == 403 and "sid" not in reply.text
        assert not any(name.startswith("access-control") for name in reply.headers)


@pytest.mark.parametrize("headers", FOREIGN)
def test_websocket_from_another_site_is_refused(headers: dict[str, str], url: str) -> None:
    given = dict(headers)
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        websocket.create_connection(
            _websocket_url(url),
            host=given.pop("host", None),
            origin=given.pop("origin", None),
            suppress_origin=True if "origin" not in headers else None,
            header=given,
        )


def test_own_page_is_let_in_and_gets_no_credentials_header(web: httpx2.Client, url: str) -> None:
    own = {"origin": url.rstrip("/"), "sec-fetch-site": "same-origin"}
    reply = web.get("/socket.io/?EIO=4&transport=polling", headers=own)
    assert reply.status_code == 200 and '"sid"' in reply.text
    assert "access-control-allow-credentials" not in reply.headers


def test_broken_messages_end_the_connection_and_nothing_else(url: str) -> None:
    for broken in ("", "x", "4", "42", "42[", '42["subscribe_training",NaN]', "4" + "[" * 9000):
        connection = websocket.create_connection(_websocket_url(url), suppress_origin=True)
        connection.recv()
        connection.send(broken)
        connection.close()

    async def check() -> None:
        async with await listening(url) as listener:
            assert (await listener.subscribe())["success"] is True

    run_async(check())


def test_vendored_files_are_those_that_were_published(web: httpx2.Client) -> None:
    listed = json.loads((STATIC / "vendor" / "vendor.json").read_text())
    for name, facts in listed.items():
        content = (STATIC / "vendor" / name).read_bytes()
        assert base64.b64encode(hashlib.sha384(content).digest()).decode() == facts["sha384"]
        assert (STATIC / "vendor" / facts["licence_file"]).is_file()
        reply = web.get(f"/static/vendor/{name}")
        kind = "css" if name.endswith(".css") else "javascript"
        assert reply.content == content and kind in reply.headers["content-type"]
    assert listed["socket.io.min.js"]["version"] == "4.8.4"


# --- clients that do not read ---------------------------------------------------------------


class Sockets:
    """A bare Socket.IO server with an outbox, and the means to fill it from the test's thread."""

    def __init__(self) -> None:
        self.server = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")
        self.outbox = Outbox(self.server)
        self.server.on("connect", lambda sid, *_: self.outbox.open(sid))
        self.server.on("disconnect", lambda sid, *_: self.outbox.close(sid))
        asgi = socketio.ASGIApp(self.server, socketio_path=None)
        self.app = Starlette(routes=[Mount("/socket.io", asgi)], lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.loop = asyncio.get_running_loop()
        task = asyncio.create_task(self.outbox.run())
        yield
        task.cancel()
        await self.server.shutdown()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def queued(self) -> int:
        return max(socket.queue.qsize() for socket in self.server.eio.sockets.values())


@pytest.fixture
def sockets() -> Iterator[tuple[Sockets, str]]:
    sockets = Sockets()
    with served(sockets.app) as client:
        yield sockets, str(client.base_url)


def _websocket_url(url: str) -> str:
    base = url.rstrip("/").replace("http", "ws", 1)
    return f"{base}/socket.io/?EIO=4&transport=websocket"


def frozen_client(sockets: Sockets, url: str) -> websocket.WebSocket:
    """Connected, and not reading from now on."""
    connection = websocket.create_connection(_websocket_url(url), timeout=30)
    connection.recv()
    connection.send("40")
    connection.recv()
    eventually(lambda: len(sockets.outbox.clients) == 1)
    return connection


def test_client_that_does_not_read_costs_little_and_then_gets_the_newest(
    sockets: tuple[Sockets, str],
) -> None:
    server, url = sockets
    connection = frozen_client(server, url)
    (sid,) = server.outbox.clients
    padding = "x" * 20_000
    most = 0
    for number in range(1000):
        server.do(server.outbox.offer([sid], "update", {"n": number, "pad": padding}, "update"))
        most = max(most, server.queued())
        if number == 900:
            server.do(server.outbox.offer([sid], "end", {}, "end"))
    assert 1 < most <= MAX_QUEUED_PACKETS
    read: list[Any] = []
    while not (read and read[-1] == 999):
        text = connection.recv()
        if text.startswith("42"):
            name, data = json.loads(text[2:])
            read.append(data["n"] if name == "update" else name)
    numbers = [item for item in read if item != "end"]
    assert numbers == sorted(set(numbers)) and len(numbers) < 900
    assert "end" in read
    connection.close()


def test_client_with_far_too_much_waiting_is_disconnected(sockets: tuple[Sockets, str]) -> None:
    server, url = sockets
    connection = frozen_client(server, url)
    (sid,) = server.outbox.clients
    padding = "x" * 20_000
    for number in range(2 * MAX_PENDING_EVENTS):
        server.do(server.outbox.offer([sid], "job", {"n": number, "pad": padding}, number))
    server.do(server.outbox.part_with_stuck())
    assert server.outbox.clients == []
    assert server.do(_queued_of_all(server)) <= 1  # only the mark that ends the writer
    connection.close()


async def _queued_of_all(sockets: Sockets) -> int:
    return sum(socket.queue.qsize() for socket in sockets.server.eio.sockets.values())


def test_run_of_another_workspace_cannot_be_followed(tmp_path: Path, url: str) -> None:
    other = Workspace(tmp_path / "elsewhere")
    run: Run = create_run(other, parse_recipe(RECIPE), 128)

    async def check() -> None:
        listener: Listener
        async with await listening(url) as listener:
            answer = await listener.subscribe(training_id=str(run.folder))
            assert answer["error_code"] == "RUN_NOT_FOUND"

    run_async(check())
