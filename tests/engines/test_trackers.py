"""Trackers and the webhook beside real runs: what they get, and that nothing they do stops a run."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from forgellm import supervisor
from forgellm.errors import ConfigError, NonFiniteLoss
from forgellm.paths import Workspace
from forgellm.runs.metrics import read_lines
from forgellm.runs.store import Run
from forgellm.schema.run import RunState
from forgellm.training import loop, side_thread, trackers, webhook
from forgellm.training.session import Session
from forgellm.training.side_thread import SideThread
from forgellm.training.trackers import Reporting, require_trackers
from forgellm.training.webhook import Webhook
from serving import PATIENCE_SECONDS, eventually
from tiny_workspace import MEMORISING, build_tiny_workspace, tiny_recipe, write_unlike_notes


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_tiny_workspace(tmp_path / "w")


def train(workspace: Workspace, **fields: Any) -> tuple[Run, RunState]:
    run, lock = supervisor.claim_new_run(workspace, tiny_recipe(**fields), max_seq_length=64)
    with lock:
        return run, Session().train(run)


@dataclass
class FakeTracker:
    """Keeps what it gets; `fails` at what it is told to."""

    fails: tuple[str, ...] = ()
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def __call__(self, module: Any, run: Run) -> FakeTracker:
        self._note("open", run.name)
        return self

    def log(self, figures: dict[str, float], iteration: int) -> None:
        self._note("log", (iteration, figures))

    def close(self, phase: str) -> None:
        self._note("close", phase)

    def _note(self, name: str, what: Any) -> None:
        self.calls.append((name, what))
        if name in self.fails:
            raise RuntimeError(f"{name} failed")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    tracker = FakeTracker()
    monkeypatch.setitem(trackers._OPENERS, "wandb", tracker)  # type: ignore[index]
    monkeypatch.setitem(trackers._MODULES, "wandb", "json")  # type: ignore[index]
    return tracker


def ended(tracker: FakeTracker) -> bool:
    return any(name == "close" for name, _ in tracker.calls)


def test_a_tracker_gets_every_report_of_a_run(workspace: Workspace, fake: FakeTracker) -> None:
    run, _ = train(workspace, report_to=["wandb"])
    eventually(lambda: ended(fake))
    reports = [line for line in read_lines(run.folder)[0] if line.iteration > 0]
    logged = [what for name, what in fake.calls if name == "log"]
    assert [iteration for iteration, _ in logged] == [line.iteration for line in reports]
    assert [f["training_loss"] for _, f in logged] == [line.training_loss for line in reports]
    assert "validation_loss" in logged[3][1] and "validation_loss" not in logged[0][1]
    assert fake.calls[-1] == ("close", "completed")


@pytest.mark.parametrize("fails", [("open",), ("log",), ("close",), ("open", "log", "close")])
def test_a_failing_tracker_is_logged_once_and_stops_nothing(
    fails: tuple[str, ...],
    workspace: Workspace,
    fake: FakeTracker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake.fails = fails
    with caplog.at_level(logging.WARNING, "forgellm.training.side_thread"):
        _, state = train(workspace, report_to=["wandb"])
        eventually(lambda: any("wandb failed" in m for m in caplog.messages))
    assert state.phase == "completed" and state.iteration == 12
    assert [m for m in caplog.messages if "wandb" in m] == [
        f"wandb failed: RuntimeError: {fails[0]} failed"
    ]


def test_a_tracker_that_hangs_holds_nothing_up(
    workspace: Workspace, fake: FakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_thread, "MAX_WAITING", 4)
    released = threading.Event()
    monkeypatch.setattr(fake, "log", lambda figures, iteration: released.wait(PATIENCE_SECONDS))
    try:
        _, state = train(workspace, report_to=["wandb"])
        assert state.phase == "completed"
        assert not ended(fake)
    finally:
        released.set()
    eventually(lambda: ended(fake))  # its end is kept even where reports were dropped


def test_a_side_thread_drops_what_it_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_thread, "MAX_WAITING", 3)
    started, released = threading.Event(), threading.Event()
    done: list[int] = []
    thread = SideThread("test")
    thread.do(lambda: (started.set(), released.wait(PATIENCE_SECONDS)) and None)
    assert started.wait(PATIENCE_SECONDS)
    for number in range(10):
        thread.do(lambda number=number: done.append(number))  # type: ignore[misc]
    thread.end_with(lambda: done.append(-1))
    released.set()
    assert thread.join(PATIENCE_SECONDS)
    assert done == [2, -1]


def test_a_tracker_that_is_not_installed_is_named_before_the_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers._MODULES, "wandb", "no_such_module")  # type: ignore[index]
    with pytest.raises(ConfigError) as caught:
        require_trackers(["tensorboard", "wandb"])
    assert caught.value.details["problems"] == [
        {"field": "report_to", "message": "wandb is not installed"}
    ]
    assert "forgellm[wandb]" in caught.value.suggestion
    with pytest.raises(ConfigError):
        train(workspace, report_to=["wandb"])


def test_unknown_trackers_and_addresses_are_refused() -> None:
    for fields in ({"report_to": ["nothing"]}, {"report_to": "wandb"}):
        with pytest.raises(ConfigError, match="report_to"):
            tiny_recipe(**fields)
    for url in ("file:///etc/passwd", "ftp://a/b", "http://", "https://user:pw@host/", "//host/x",
                "http://host/a b", "http://host\n/x", "gopher://h", "javascript:alert(1)", ""):  # fmt: skip
        with pytest.raises(ConfigError, match="webhook_url"):
            tiny_recipe(webhook_url=url)


def test_tensorboard_files_hold_the_curves(workspace: Workspace) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    run, _ = train(workspace, report_to=["tensorboard"])
    (file,) = (run.folder / "tensorboard").iterdir()
    eventually(lambda: len(list(_records(file, masked_crc32c))) >= 60)
    losses = {}
    for record in _records(file, masked_crc32c):
        event = Event.FromString(record)
        for value in event.summary.value:
            if value.tag == "training_loss":
                losses[event.step] = value.simple_value
    lines = {line.iteration: line.training_loss for line in read_lines(run.folder)[0]}
    assert losses == {i: pytest.approx(loss) for i, loss in lines.items() if loss is not None}


def _records(file: Path, crc: Any) -> Iterator[bytes]:
    content = file.read_bytes()
    while len(content) >= 16:
        length = int.from_bytes(content[:8], "little")
        if len(content) < 16 + length:
            return
        assert int.from_bytes(content[8:12], "little") == crc(content[:8])
        yield content[12 : 12 + length]
        content = content[16 + length :]


def reported(run: Run, name: Any) -> None:
    """Give a run's own lines to a real tracker, opened twice as by a resume."""
    lines = [line for line in read_lines(run.folder)[0] if line.training_loss is not None]
    for part in (lines[:6], lines[6:]):
        reporting = Reporting(run, [name])
        for line in part:
            reporting.report(line)
        reporting.close("completed")
        assert reporting.join(PATIENCE_SECONDS * 4)


def test_mlflow_keeps_a_resumed_run_as_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run, _ = train(workspace)
    reported(run, "mlflow")
    assert not [m for m in caplog.messages if "mlflow failed" in m]
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{workspace.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("forgellm")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["dataset"] == "notes"
    history = client.get_metric_history(found.info.run_id, "training_loss")
    assert [point.step for point in history] == list(range(1, 13))


def test_trackio_keeps_the_figures(
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    run, _ = train(workspace)
    reported(run, "trackio")
    assert not [m for m in caplog.messages if "trackio failed" in m]
    assert list((tmp_path / "trackio").glob("forgellm*.db"))


# --- the webhook ----------------------------------------------------------------------------


@dataclass
class Receiver:
    """What came, and what is answered: a status, or where to redirect to."""

    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/hook?key=s3cret":
                found.events.append(json.loads(body))
            else:
                found.others.append(self.path)
            self.send_response(found.answers.pop(0) if found.answers else 204)
            self.send_header("Location", f"{found.url}elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_port}/hook?key=s3cret"
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "RETRY_SECONDS", (0.0, 0.0))


def test_the_webhook_hears_of_the_end(workspace: Workspace, receiver: Receiver) -> None:
    run, _ = train(workspace, webhook_url=receiver.url)
    eventually(lambda: receiver.events)
    (event,) = receiver.events
    assert (event["event"], event["iteration"], event["max_iterations"]) == ("completed", 12, 12)
    assert event["training_id"] == run.record().training_id
    assert event["output_dir"] == run.output_dir
    assert len(event["best_checkpoints"]) == 3 and event["error"] is None
    assert "s3cret" not in json.dumps(event)


def test_the_webhook_hears_of_overfitting_once(workspace: Workspace, receiver: Receiver) -> None:
    write_unlike_notes(workspace)
    _, state = train(workspace, webhook_url=receiver.url, **MEMORISING)
    assert state.overfitting
    eventually(lambda: len(receiver.events) >= 2)
    assert [event["event"] for event in receiver.events] == ["overfitting", "completed"]
    assert receiver.events[0]["iteration"] == state.overfitting_iteration


def test_the_webhook_hears_of_a_failure(
    workspace: Workspace, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "learning_rate", lambda iteration, recipe: 1e30)
    with pytest.raises(NonFiniteLoss):
        train(workspace, webhook_url=receiver.url, max_grad_norm=0)
    eventually(lambda: receiver.events)
    (event,) = receiver.events
    assert (event["event"], event["error"]["error_code"]) == ("failed", "NON_FINITE_LOSS")


def test_the_webhook_hears_of_a_stop(workspace: Workspace, receiver: Receiver) -> None:
    recipe = tiny_recipe(webhook_url=receiver.url)
    run, lock = supervisor.claim_new_run(workspace, recipe, max_seq_length=64)
    session = Session()
    session.observer = lambda line, state: setattr(session, "stop", line.iteration >= 5)
    with lock:
        session.train(run)
    eventually(lambda: receiver.events)
    assert [(e["event"], e["iteration"]) for e in receiver.events] == [("stopped", 5)]


def test_a_busy_receiver_is_tried_again(
    workspace: Workspace, receiver: Receiver, no_pauses: None
) -> None:
    receiver.answers = [503, 500]
    train(workspace, webhook_url=receiver.url)
    eventually(lambda: len(receiver.events) == 3)
    assert receiver.answers == []


@pytest.mark.parametrize(("answers", "expected"), [([307], 1), ([404], 1), ([500] * 9, 3)])
def test_a_refusal_is_logged_without_the_address_and_redirects_are_not_followed(
    answers: list[int],
    expected: int,
    workspace: Workspace,
    receiver: Receiver,
    no_pauses: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.answers = answers
    _, state = train(workspace, webhook_url=receiver.url)
    assert state.phase == "completed"
    eventually(lambda: any("webhook" in m for m in caplog.messages))
    (message,) = [m for m in caplog.messages if "webhook" in m]
    assert "127.0.0.1" in message and "s3cret" not in message
    assert len(receiver.events) == expected and receiver.others == []


def test_nobody_listening_stops_nothing(
    workspace: Workspace, no_pauses: None, caplog: pytest.LogCaptureFixture
) -> None:
    _, state = train(workspace, webhook_url="http://127.0.0.1:9/hook")
    assert state.phase == "completed"
    eventually(lambda: any("ConnectError" in m for m in caplog.messages))


def test_other_schemes_never_reach_the_client() -> None:
    for url in ("file:///etc/passwd", "ftp://host/x", "unix:///x"):
        with pytest.raises(ConfigError):
            Webhook(url)
