"""Somebody who has never seen it, in a fresh workspace and in the browser alone: the demo's model is
trained, watched, stopped and resumed, talked to beside its base, and its files are found."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from browser.conftest import Servers, Watched
from forgellm.paths import Workspace

LONG = 600_000  # the real model is read and trained on whatever this machine is


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Servers]:
    started = Servers(Workspace(tmp_path.resolve()))
    yield started
    started.end()


def test_from_nothing_to_a_taught_model(browser: Any, fresh: Servers) -> None:
    tab = Watched(browser, fresh.url, viewport={"width": 1360, "height": 900})
    page = tab.page
    page.set_default_timeout(LONG)

    tab.go("/")
    page.click("text=Set up the demo")
    page.wait_for_selector("text=The demo is ready")
    page.wait_for_selector(".memory-bar")
    fill(page, "Iterations", "40")
    fill(page, "Sequence length", "48")
    page.click("text=All fields")
    fill(page, "save_every", "4")
    fill(page, "eval_every", "4")
    fill(page, "val_batches", "1")
    fill(page, "sample_prompts", "Who lights the lamps?")
    page.click("button:has-text('Start training')")

    page.wait_for_selector(".chart-canvas canvas")
    page.wait_for_selector("button:has-text('Stop')")
    page.click("text=Checkpoints")
    page.locator("tr:has-text('best')").wait_for()

    # The web server dies in the middle, and the page says so and goes on when it is back.
    fresh.process.send_signal(signal.SIGKILL)
    fresh.process.wait()
    page.wait_for_selector("text=The server does not answer")
    fresh.start()
    page.locator("text=The server does not answer").wait_for(state="hidden")

    page.click("button:has-text('Stop')")
    page.click("button:has-text('Resume')")
    page.locator(".page-head .badge:has-text('training')").wait_for()
    page.reload()
    page.locator(".page-head .badge:has-text('completed')").wait_for()
    page.click("text=Answers")
    page.wait_for_selector(".samples >> text=untrained")
    page.click("text=Checkpoints")
    folder = page.locator("code:has-text('models/cpt/')").inner_text()
    assert (fresh.workspace.root / folder / "run.json").is_file()

    page.locator("tr.best >> text=Compare").click()
    page.fill(".composer textarea", "Who lights the lamps?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .message-tools")).to_have_count(2, timeout=LONG)
    answers = page.locator(".answer .markdown").all_inner_texts()
    assert len(answers) == 2 and all(answers)
    page.reload()
    page.wait_for_selector(".answer .markdown")
    assert page.locator(".answer .markdown").all_inner_texts() == answers
    tab.context.close()
    assert tab.errors == [] and tab.foreign == []


def fill(page: Any, label: str, value: str) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    field.blur()
