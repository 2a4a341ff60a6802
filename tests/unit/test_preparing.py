"""A run while its text is tokenised: what is seen of it, how it is stopped, and that it goes on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from forgellm.cli.foreground import _Bar, _Lines
from forgellm.data import document_store
from forgellm.data.progress import Tokenised
from forgellm.paths import Workspace
from forgellm.runs.lock import take_lock
from forgellm.runs.store import create_run
from forgellm.schema.run import RunState
from forgellm.training import preparing
from forgellm.training.session import Session
from forgellm.web.run_status import RunStatus
from tiny_workspace import build_tiny_workspace, tiny_recipe


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(document_store, "_BATCH_CHARACTERS", 1000)
    monkeypatch.setattr(document_store, "_PIECE_CHARACTERS", 200)
    monkeypatch.setattr(document_store, "_MARK_BYTES", 1000)
    monkeypatch.setattr(preparing, "_WRITE_SECONDS", 0.0)
    return build_tiny_workspace(tmp_path, num_documents=30)


def train(workspace: Workspace, session: Session) -> RunState:
    run = create_run(workspace, tiny_recipe(data_mixture_ratio=1.0), 64)
    with take_lock(run.folder):
        return session.train(run)


def test_the_status_shows_it_a_stop_ends_it_and_the_next_run_goes_on(workspace: Workspace) -> None:
    statuses: list[dict[str, Any]] = []
    starts: list[int] = []

    def until_some(session: Session, tokens: int) -> Session:
        first: list[int] = []

        def on_tokenised(figure: Tokenised) -> None:
            statuses.append(RunStatus(workspace).status())
            assert (statuses[-1]["tokenising"] or {}).get("num_tokens") == figure.num_tokens
            if figure.num_tokens:
                first.append(figure.num_tokens)
                starts[len(starts) :] = first if len(first) == 1 else []
                session.stop = figure.num_tokens - first[0] >= tokens

        session.on_tokenised = on_tokenised
        return session

    assert train(workspace, until_some(Session(), 300)).phase == "stopped"
    assert {status["phase"] for status in statuses} == {"preparing"}
    assert RunStatus(workspace).status()["tokenising"] is None
    assert train(workspace, until_some(Session(), 0)).phase == "stopped"
    assert starts[1] > starts[0]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_terminal_shows_how_far_it_is(is_terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=120)
    view = _Bar(console, 50) if is_terminal else _Lines(console)
    with view:
        view.stage("reading")
        view.tokenised(Tokenised(12_000_000, 48_000_000, 3_456_789))
    assert "3.5 million tokens" in text.getvalue()
    assert ("12/48" if is_terminal else "12 of 48 MB") in text.getvalue()
